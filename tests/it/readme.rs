//! The README says what is so.

use crate::kit::{Worker, finish, node_fixer};

fn readme() -> String {
    std::fs::read_to_string("README.md").unwrap()
}

/// The code blocks of this language.
fn blocks(language: &str) -> Vec<String> {
    let readme = readme();
    let parts = readme.split("```").skip(1).step_by(2);
    parts.filter_map(|part| part.strip_prefix(&format!("{language}\n")).map(str::to_owned)).collect()
}

#[test]
fn the_dry_run_that_it_shows_is_real() {
    let node = Worker::new().with_pod(100).with_pod(101).without_default(2);
    node.net.set_sysctl("net/ipv4/conf/default/rp_filter", "1");
    let script = node.fix(&["--dry-run"]).expect(0).out;
    assert!(blocks("sh").contains(&script), "README.md does not show this:\n{script}");
    let ran = node.fix(&[]).expect(0);
    assert!(blocks("text").contains(&ran.out), "README.md does not show this:\n{}", ran.out);
}

#[test]
fn its_configurations_are_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let yaml = blocks("yaml");
    assert!(!yaml.is_empty());
    for block in yaml {
        let path = directory.path().join("config.yaml");
        std::fs::write(&path, &block).unwrap();
        finish(node_fixer().arg("--config").arg(&path).arg("check-config").output().unwrap()).expect(0);
    }
}

#[test]
fn its_exit_codes_are_those_of_the_help() {
    let help = finish(node_fixer().arg("--help").output().unwrap()).expect(0).out;
    let mut seen = 0;
    let codes = help.lines().skip_while(|line| !line.starts_with("Exit codes")).skip(1).map(str::trim);
    for (code, meaning) in codes.filter_map(|line| line.split_once(' ')) {
        let row = format!("| {code} | {} |", meaning.trim());
        assert!(readme().contains(&row), "README.md lacks {row}");
        seen += 1;
    }
    assert_eq!(seen, 7, "{help}");
}
