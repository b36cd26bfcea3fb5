//! Writes what packages say of the works of others that are in the binary, from Cargo.lock and the crates themselves:
//!
//!     cargo run --example third_party -- DIRECTORY TRIPLE [ROOT]
//!
//! ROOT is the root file system with the toolchain that built the binary, if that is not this machine's.
//!
//! THIRD-PARTY-NOTICES has the licences of all crates and of the C library, rust-std-copyright.html those of Rust's
//! standard library, node-fixer.cdx.json is a bill of materials (CycloneDX). Fails where a text is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

/// Where the license of the GNU C library lies on the systems that packages are built on.
const LGPL: [&str; 3] = [
    "usr/share/common-licenses/LGPL-2.1",
    "usr/share/licenses/glibc/COPYING.LIB",
    "usr/share/licenses/glibc-devel/COPYING.LIB",
];
/// What the C library says of its parts; and where Debian and Red Hat have it.
const GLIBC: [&str; 3] =
    ["usr/share/doc/libc6-dev/copyright", "usr/share/doc/libc6/copyright", "usr/share/licenses/glibc/LICENSES"];

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let directory = arguments.next().map(PathBuf::from).context("name a directory")?;
    let triple = arguments.next().and_then(|triple| triple.into_string().ok()).context("name a target triple")?;
    let root = Root(arguments.next().map_or("/".into(), PathBuf::from));
    let metadata = metadata(&triple)?;
    let crates = crates(&metadata)?;
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("THIRD-PARTY-NOTICES"), notices(&crates, &triple, &root)?)?;
    fs::write(directory.join("node-fixer.cdx.json"), bill_of_materials(&crates, &triple, &root)?)?;
    fs::write(directory.join("rust-std-copyright.html"), rust_std_copyright(&root)?)?;
    Ok(())
}

/// The root file system with the toolchain.
struct Root(PathBuf);

impl Root {
    /// What a program of it prints.
    fn output_of(&self, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(if self.is_other() { "chroot" } else { program });
        if self.is_other() {
            command.arg(&self.0).arg(program);
        }
        let output = command.args(arguments).output().with_context(|| format!("cannot run {program}"))?;
        ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// The first of these files that is there.
    fn first_of(&self, paths: &[&str]) -> anyhow::Result<String> {
        let found = paths.iter().map(|path| self.0.join(path)).find(|path| path.exists());
        let path = found.with_context(|| format!("none of these is in {}: {}", self.0.display(), paths.join(", ")))?;
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    fn is_other(&self) -> bool {
        self.0 != Path::new("/")
    }
}

/// A crate of which something is in the binary: its code, or what it generated.
struct Crate {
    id: String,
    name: String,
    version: String,
    license: String,
    repository: Option<String>,
    directory: PathBuf,
    /// Of the archive at crates.io, by Cargo.lock.
    checksum: Option<String>,
    depends_on: Vec<String>,
}

impl Crate {
    fn url(&self) -> String {
        format!("pkg:cargo/{}@{}", self.name, self.version)
    }
}

fn metadata(triple: &str) -> anyhow::Result<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", triple])
        .output()
        .context("cannot run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn text(value: &Value, key: &str) -> Option<String> {
    Some(value.get(key)?.as_str()?.to_owned())
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// All that node-fixer depends on, but for its tests; itself first.
fn crates(metadata: &Value) -> anyhow::Result<Vec<Crate>> {
    let resolve = metadata.get("resolve").context("no resolve in cargo's metadata")?;
    let root = text(resolve, "root").context("no root in cargo's metadata")?;
    let is_normal =
        |dependency: &&Value| list(dependency, "dep_kinds").any(|kind| kind.get("kind").is_none_or(Value::is_null));
    let of_node = |node: &Value| -> Vec<String> {
        list(node, "deps").filter(is_normal).filter_map(|dependency| text(dependency, "pkg")).collect()
    };
    let graph: BTreeMap<String, Vec<String>> =
        list(resolve, "nodes").filter_map(|node| Some((text(node, "id")?, of_node(node)))).collect();
    let (mut found, mut open) = (BTreeSet::new(), vec![root.clone()]);
    while let Some(id) = open.pop() {
        open.extend(graph.get(&id).into_iter().flatten().filter(|next| !found.contains(*next)).cloned());
        found.insert(id);
    }
    let checksums = checksums()?;
    let mut crates = Vec::new();
    for package in
        list(metadata, "packages").filter(|package| text(package, "id").is_some_and(|id| found.contains(&id)))
    {
        let need = |key: &str| text(package, key).with_context(|| format!("no {key} in {package}"));
        let (id, name, version) = (need("id")?, need("name")?, need("version")?);
        let directory = PathBuf::from(need("manifest_path")?).parent().map(Path::to_path_buf).unwrap_or_default();
        crates.push(Crate {
            depends_on: graph.get(&id).cloned().unwrap_or_default(),
            checksum: checksums.get(&(name.clone(), version.clone())).cloned(),
            license: need("license")?,
            repository: text(package, "repository"),
            id,
            name,
            version,
            directory,
        });
    }
    crates.sort_by_key(|it| (it.id != root, it.name.clone(), it.version.clone()));
    Ok(crates)
}

/// The checksums in Cargo.lock, by name and version.
fn checksums() -> anyhow::Result<BTreeMap<(String, String), String>> {
    let lock = fs::read_to_string("Cargo.lock").context("run it in the folder of Cargo.lock")?;
    let value = |block: &str, key: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'));
        line.map(str::to_owned)
    };
    let blocks = lock.split("[[package]]\n").skip(1);
    Ok(blocks
        .filter_map(|block| Some(((value(block, "name")?, value(block, "version")?), value(block, "checksum")?)))
        .collect())
}

/// Texts under a heading for all whose text it is.
fn notices(crates: &[Crate], triple: &str, root: &Root) -> anyhow::Result<String> {
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for it in crates.iter().skip(1) {
        let title = format!("{} {} ({})", it.name, it.version, it.license);
        for text in license_texts(it)? {
            texts.entry(text).or_default().push(title.clone());
        }
    }
    let mut groups: Vec<(Vec<String>, String)> = texts.into_iter().map(|(text, titles)| (titles, text)).collect();
    groups.sort();
    let mut out = String::from(
        "node-fixer is one static binary. Works of others are in it, under these licences. Where a work has several to choose\n\
         from, it is here under the MIT License. Those of Rust's standard library are in rust-std-copyright.html beside this\n\
         file, a bill of materials in node-fixer.cdx.json.\n",
    );
    for (titles, text) in groups {
        section(&mut out, &titles, &text);
    }
    if triple.contains("gnu") {
        let titles = ["The GNU C Library (LGPL-2.1-or-later, and others)".to_owned()];
        let relink = "The GNU C Library is linked into this binary as a static library. To use it with another version of that library,\n\
                      build node-fixer from its source, of which Cargo.lock names every part, on a system that has that version:\n\
                      packaging/build.";
        section(&mut out, &titles, relink);
        section(&mut out, &["What the GNU C Library says of its parts".to_owned()], &root.first_of(&GLIBC)?);
        section(&mut out, &["The licence of the GNU C Library".to_owned()], &root.first_of(&LGPL)?);
    }
    Ok(out)
}

fn section(out: &mut String, titles: &[String], text: &str) {
    let line = "=".repeat(100);
    out.push_str(&format!("\n{line}\n{}\n{line}\n\n{}\n", titles.join("\n"), text.trim()));
}

/// The licences that a crate comes with; of several to choose from the MIT License.
fn license_texts(it: &Crate) -> anyhow::Result<Vec<String>> {
    const NAMES: [&str; 6] = ["licen", "copying", "copyright", "notice", "unlicense", "authors"];
    let mut names = Vec::new();
    for entry in fs::read_dir(&it.directory).with_context(|| format!("cannot list {}", it.directory.display()))? {
        let name = entry?.file_name().into_string().unwrap_or_default();
        if NAMES.iter().any(|start| name.to_ascii_lowercase().starts_with(start)) {
            names.push(name);
        }
    }
    names.sort();
    let to_choose = it.license.contains(" OR ") || it.license.contains('/');
    if to_choose && names.iter().any(|name| name == "LICENSE-MIT") {
        let others = ["LICENSE-APACHE", "LICENSE-Apache", "LICENSE-BOOST", "UNLICENSE", "COPYING"];
        names.retain(|name| !others.iter().any(|other| name.starts_with(other)));
    }
    ensure!(!names.is_empty(), "{} {} comes without its licence ({})", it.name, it.version, it.license);
    let read = |name: &String| -> anyhow::Result<String> {
        let bytes = fs::read(it.directory.join(name)).with_context(|| format!("cannot read {name} of {}", it.name))?;
        Ok(String::from_utf8_lossy(&bytes).replace("\r\n", "\n").trim().to_owned())
    };
    names.iter().map(read).collect()
}

/// The notices that come with the toolchain: a page of rustup's, or the text of Debian's package.
fn rust_std_copyright(root: &Root) -> anyhow::Result<String> {
    let sysroot = root.output_of("rustc", &["--print", "sysroot"])?;
    let page = format!("{}/share/doc/rust/COPYRIGHT-library.html", sysroot.trim_start_matches('/'));
    if let Ok(page) = root.first_of(&[&page]) {
        return Ok(page);
    }
    let debian = ["usr/share/doc/libstd-rust-web-dev/copyright", "usr/share/doc/libstd-rust-dev/copyright"];
    let text = root.first_of(&debian).with_context(|| format!("this toolchain comes without /{page}"))?;
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    Ok(format!(
        "<!DOCTYPE html>\n<meta charset=\"utf-8\">\n<title>Rust's standard library</title>\n<pre>\n{text}</pre>\n"
    ))
}

/// CycloneDX 1.5 in JSON. The same source makes the same: it has no serial number, and the time is that of the source.
fn bill_of_materials(crates: &[Crate], triple: &str, root: &Root) -> anyhow::Result<String> {
    let component = |it: &Crate, kind: &str| {
        let mut component = json!({
            "type": kind, "bom-ref": it.url(), "name": it.name, "version": it.version, "purl": it.url(),
            "licenses": [{"expression": it.license.replace('/', " OR ")}],
        });
        if let (Some(object), Some(checksum)) = (component.as_object_mut(), &it.checksum) {
            object.insert("hashes".into(), json!([{"alg": "SHA-256", "content": checksum}]));
        }
        if let (Some(object), Some(url)) = (component.as_object_mut(), &it.repository) {
            object.insert("externalReferences".into(), json!([{"type": "vcs", "url": url}]));
        }
        component
    };
    let url_of: BTreeMap<&str, String> = crates.iter().map(|it| (it.id.as_str(), it.url())).collect();
    let rust = root.output_of("rustc", &["--version"])?.split(' ').nth(1).context("rustc has no version")?.to_owned();
    let mut others = vec![json!({
        "type": "library", "bom-ref": "rust-std", "name": "rust-std", "version": rust,
        "purl": format!("pkg:github/rust-lang/rust@{rust}"), "licenses": [{"expression": "MIT OR Apache-2.0"}],
    })];
    if triple.contains("gnu") {
        let version = root.output_of("ldd", &["--version"])?;
        let version = version.lines().next().and_then(|line| line.rsplit(' ').next()).context("ldd has no version")?;
        others.push(json!({
            "type": "library", "bom-ref": "glibc", "name": "glibc", "version": version,
            "purl": format!("pkg:generic/glibc@{version}"), "licenses": [{"expression": "LGPL-2.1-or-later"}],
        }));
    }
    let program = crates.first().context("no crates")?;
    let others_refs: Vec<String> = others.iter().filter_map(|other| text(other, "bom-ref")).collect();
    let dependencies = crates.iter().map(|it| {
        let mut on: Vec<String> = it.depends_on.iter().filter_map(|id| url_of.get(id.as_str()).cloned()).collect();
        if it.id == program.id {
            on.extend(others_refs.iter().cloned());
        }
        on.sort();
        json!({"ref": it.url(), "dependsOn": on})
    });
    let dependencies: Vec<Value> = dependencies.collect();
    let components: Vec<Value> = crates.iter().skip(1).map(|it| component(it, "library")).chain(others).collect();
    let bill = json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {"timestamp": time_of_the_source()?, "component": component(program, "application")},
        "components": components,
        "dependencies": dependencies,
    });
    Ok(serde_json::to_string_pretty(&bill)? + "\n")
}

/// SOURCE_DATE_EPOCH (https://reproducible-builds.org), which packaging/build sets.
fn time_of_the_source() -> anyhow::Result<String> {
    let seconds = std::env::var("SOURCE_DATE_EPOCH").context("SOURCE_DATE_EPOCH is not set")?;
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.trim().parse()?);
    Ok(humantime::format_rfc3339_seconds(time).to_string())
}
