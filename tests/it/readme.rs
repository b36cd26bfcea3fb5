//! The README says what is so.

use node_fixer::metrics::{Counters, Now};

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

/// Times as the README has them.
fn at_the_same_time(text: &str) -> String {
    let word = |word: &str| {
        let is_seconds = word.strip_suffix('s').is_some_and(|number| number.parse::<u32>().is_ok());
        if is_seconds { "12s".to_owned() } else { word.to_owned() }
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_status_that_it_shows_is_real() {
    let node = Worker::new().with_pod(100).with_loose_rp_filter();
    for _ in 0..5 {
        node.net.ip("route del default table 2");
        node.fix(&[]).expect(0);
    }
    node.net.ip("rule add priority 1536 from 10.0.1.102 lookup 7");
    node.config("kube_proxy: {mode: off}");
    // The test of the packages looks at what systemd knows.
    let known_from_systemd = 2;
    // Nor is it this machine's suspects that the README shows.
    let after = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with("  suspect: ")).skip(known_from_systemd);
        lines.map(|line| line.to_owned() + "\n").collect::<String>()
    };
    let status = after(&at_the_same_time(&node.fix(&["status"]).expect(0).out));
    assert!(blocks("text").iter().any(|block| after(block) == status), "README.md does not show this:\n{status}");
}

#[test]
fn every_metric_is_in_its_table() {
    let text = Counters::default().text(&[("rules", Now::default())]);
    let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(names.len() > 10, "{text}");
    for name in &names {
        assert!(readme().contains(&format!("\n| `{name}` | ")), "README.md lacks {name}");
    }
    assert_eq!(readme().matches("\n| `node_fixer_").count(), names.len(), "README.md has more than there are");
}

#[test]
fn the_explanation_that_it_shows_is_real() {
    let node = Worker::new().with_pod(100).with_pod(101).without_default(2).with_carrier();
    let told = node.fix(&["explain", "10.0.1.100", "192.0.2.1"]).expect(1).out;
    assert!(blocks("text").contains(&told), "README.md does not show this:\n{told}");
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

#[test]
fn what_doctor_finds_is_real() {
    let node = Worker::new().with_pod(100).with_pod(101).without_default(2);
    node.net.ip("rule add priority 1024 fwmark 0x80/0x80 lookup main");
    let root = tempfile::tempdir().unwrap();
    for (path, text) in [
        (
            "usr/lib/sysctl.d/50-redhat.conf",
            "# Source route verification\nnet.ipv4.conf.default.rp_filter = 1\nnet.ipv4.conf.*.rp_filter = 1\n",
        ),
        (
            "usr/lib/udev/rules.d/99-systemd.rules",
            "ACTION==\"add\", SUBSYSTEM==\"net\", KERNEL!=\"lo\", RUN+=\"systemd-sysctl --prefix=/net/ipv4/conf/$name\"\n",
        ),
        ("run/systemd/netif/state", ""),
    ] {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let ran = node.fix(&["doctor", "--root", root.path().to_str().unwrap()]).expect(1);
    assert!(blocks("text").contains(&ran.out), "README.md does not show this:\n{}", ran.out);
}

#[test]
fn it_lists_every_cause_of_doctor_in_its_order() {
    let rows = node_fixer::doctor::ALL.iter().map(|check| format!("| `{}` | {} |\n", check.cause, check.title));
    let table: String = rows.collect();
    assert!(readme().contains(&table), "README.md lacks:\n{table}");
}
