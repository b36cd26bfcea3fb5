//! Configuration: a corpus of bad ones, each with the error it must give, and how files combine.

use std::fs;

use crate::kit::{finish, node_fixer};

/// Each file of tests/bad-config begins with `# LINE:COLUMN: the rest of the message`, a part of which is enough.
#[test]
fn every_bad_configuration_is_reported_what_is_wrong_with_it_and_where() {
    let mut seen = 0;
    let mut wrong = Vec::new();
    for entry in fs::read_dir("tests/bad-config").unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let first = String::from_utf8_lossy(bytes.split(|byte| *byte == b'\n').next().unwrap()).into_owned();
        let expected = first.strip_prefix("# ").unwrap_or_else(|| panic!("{path:?} begins with {first:?}"));
        for args in [&["check-config"][..], &["--dry-run"], &[]] {
            let ran = finish(node_fixer().arg("--config").arg(&path).args(args).output().unwrap());
            let message = format!("{}:{expected}", path.display());
            if ran.code != 78 || !ran.err.contains(&message) || !ran.out.is_empty() {
                wrong.push(format!("{args:?} {path:?}\n  want {message}\n  got  {} {}", ran.code, ran.err));
                break;
            }
        }
        seen += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen >= 30, "the corpus has shrunk to {seen}");
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_too() {
    for (file, said) in [("/no/such/file", "No such file"), ("/", "directory"), ("/proc/self/mem", "cannot read")] {
        let ran = finish(node_fixer().args(["--config", file, "check-config"]).output().unwrap()).expect(78);
        assert!(ran.err.contains(file) && ran.err.contains(said), "{ran:?}");
    }
    let directory = tempfile::tempdir().unwrap();
    let large = directory.path().join("large.yaml");
    fs::write(&large, format!("version: 1\n#{}\n", "x".repeat(1 << 20))).unwrap();
    let ran = finish(node_fixer().arg("--config").arg(&large).arg("check-config").output().unwrap()).expect(78);
    assert!(ran.err.contains("large.yaml:1:1: is larger than the maximum of 1 MiB"), "{ran:?}");
}

/// A pipe that nobody writes holds nobody up where nobody has named it; one that is named is read.
#[test]
fn a_pipe_among_the_drop_ins_is_an_error() {
    use nix::sys::stat::Mode;
    for name in ["a.yaml", "a.yml"] {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("config.d")).unwrap();
        fs::write(directory.path().join("main.yaml"), "version: 1\n").unwrap();
        nix::unistd::mkfifo(&directory.path().join("config.d").join(name), Mode::S_IRWXU).unwrap();
        let ran = node_fixer().arg("--config").arg(directory.path().join("main.yaml")).arg("check-config").output();
        let ran = finish(ran.unwrap()).expect(78);
        assert!(ran.err.contains(name), "{ran:?}");
    }
    let script = "printf 'version: 1\\n' | \"$0\" --config /dev/stdin check-config";
    let ran = std::process::Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_node-fixer")]).output();
    assert!(finish(ran.unwrap()).expect(0).out.contains("version: 1"));
}

#[test]
fn drop_ins_are_merged_and_the_result_says_where_from() {
    let directory = tempfile::tempdir().unwrap();
    let main = directory.path().join("main.yaml");
    fs::write(&main, "version: 1\nrp_filter:\n  mode: observe\n  value: strict\n").unwrap();
    fs::create_dir(directory.path().join("config.d")).unwrap();
    for (name, text) in [
        ("20-last.yaml", "rp_filter: {value: loose}\n"),
        ("10-first.yaml", "rp_filter:\n  value: off\nroutes: [{to: default, dev: eth1, table: 7}]\n"),
        ("notes.txt", "not: [yaml"),
        (".hidden.yaml", "not: [yaml"),
    ] {
        fs::write(directory.path().join("config.d").join(name), text).unwrap();
    }
    let run = |args: &[&str]| finish(node_fixer().arg("--config").arg(&main).args(args).output().unwrap());
    let yaml = run(&["check-config"]).expect(0).out;
    for (start, end) in [
        ("  mode: \"observe\" ", "main.yaml:3"),
        ("  value: \"loose\" ", "config.d/20-last.yaml:1"),
        ("  families: [\"ipv4\",\"ipv6\"] ", "# built-in default"),
        ("routes:", "config.d/10-first.yaml:3"),
    ] {
        assert!(yaml.lines().any(|line| line.starts_with(start) && line.ends_with(end)), "{start}: {yaml}");
    }
    let reread = directory.path().join("again.yaml");
    fs::create_dir(directory.path().join("empty")).unwrap();
    let reread = reread.parent().unwrap().join("empty").join("again.yaml");
    fs::write(&reread, &yaml).unwrap();
    let again =
        finish(node_fixer().arg("--config").arg(&reread).args(["check-config", "--output", "json"]).output().unwrap());
    let json = run(&["check-config", "--output", "json"]).expect(0).json();
    assert_eq!(again.expect(0).json()["config"], json["config"], "what is printed is a configuration");
    assert!(json["sources"]["rp_filter.value"].as_str().unwrap().ends_with("20-last.yaml:1"), "{json}");
    fs::write(directory.path().join("config.d/30.yaml"), "\n\nrp_filtre: {}\n").unwrap();
    let ran = run(&["check-config"]).expect(78);
    assert!(
        ran.err.contains("config.d/30.yaml:3:1: rp_filtre: unknown key `rp_filtre`; did you mean `rp_filter`?"),
        "{ran:?}"
    );
}

#[test]
fn a_file_that_would_not_be_read_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let main = directory.path().join("main.yaml");
    fs::write(&main, "version: 1\n").unwrap();
    fs::create_dir(directory.path().join("config.d")).unwrap();
    fs::write(directory.path().join("config.d/20.yml"), "rp_filter: {mode: off}\n").unwrap();
    let ran = finish(node_fixer().arg("--config").arg(&main).arg("check-config").output().unwrap()).expect(78);
    assert!(ran.err.contains("20.yml: cannot read the configuration: only files named .yaml are read"), "{ran:?}");
}

#[test]
fn a_valid_configuration_is_called_ok() {
    let check = |args: &[&str]| {
        let mut command = node_fixer();
        let command = command.args(["--config", "config/two-uplinks.yaml", "check-config"]).args(args);
        finish(command.output().unwrap()).expect(0)
    };
    let ran = check(&[]);
    assert_eq!((ran.out.lines().last(), ran.err.as_str()), (Some("# ok: the configuration is valid"), ""));
    assert!(check(&["--output", "json"]).json().is_object());
}

#[test]
fn the_schema_is_printed() {
    let schema = finish(node_fixer().arg("schema").output().unwrap()).expect(0).json();
    assert!(schema["properties"]["rp_filter"].is_object(), "{schema}");
}

/// A configuration of up to 1 MiB takes no more memory than a service may have, whatever is in it.
#[test]
fn no_configuration_takes_all_the_memory() {
    let many = |count: usize, line: &dyn Fn(usize) -> String| (0..count).map(line).collect::<String>();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.yaml");
    for (case, sections, mib, code) in [
        ("labels", "kube_proxy:\n  labels:\n".to_owned() + &many(16_000, &|n| format!("    k{n}: v{n}\n")), 128, 0),
        (
            "rules",
            "rules:\n".to_owned() + &many(16_000, &|n| format!("- {{priority: {}, table: 7}}\n", 100 + n)),
            128,
            0,
        ),
        (
            "addresses",
            "addresses:\n".to_owned()
                + &many(16_000, &|n| format!("- {{dev: lo, address: 10.1.{}.{}}}\n", n / 256, n % 256)),
            128,
            0,
        ),
        (
            "patterns, each compiled and forgotten",
            "namespaces:\n".to_owned()
                + &many(600, &|n| {
                    format!(
                        "- {{match: '^f{n}(.{{0,255}}.{{0,255}})$', older_than: 10m, links: '^v{n}_(.{{0,255}}.{{0,255}})$'}}\n"
                    )
                }),
            32,
            0,
        ),
        ("a pattern", "namespaces: [{match: '((a{99}){99}){99}', older_than: 10m}]".into(), 32, 78),
        ("an alias", "a: &a [".to_owned() + &"x,".repeat(1000) + "]\nb: [" + &"*a,".repeat(9000) + "]", 128, 78),
        ("a key", "x".repeat(1_000_000) + ": 1", 128, 78),
    ] {
        let text = format!("version: 1\n{sections}\n");
        assert!(text.len() < 1 << 20, "{case}");
        fs::write(&file, text).unwrap();
        let mut limited = std::process::Command::new("prlimit");
        limited.args([&format!("--data={}", mib << 20), env!("CARGO_BIN_EXE_node-fixer"), "--config"]);
        let ran = finish(limited.arg(&file).arg("check-config").output().unwrap());
        assert_eq!(ran.code, code, "{case}: {}", ran.err.chars().take(300).collect::<String>());
    }
}
