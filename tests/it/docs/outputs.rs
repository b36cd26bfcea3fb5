//! What the pages show is what a node shows.

use node_fixer::report::metrics::{Counters, Now};

use super::{Page, pages, shows};
use crate::kit::{Worker, finish, node_fixer};

#[test]
fn the_dry_run_and_the_run() {
    let node = Worker::new().with_pod(100).with_pod(101).without_default(2);
    node.net.set_sysctl("net/ipv4/conf/default/rp_filter", "1");
    let script = node.fix(&["--dry-run"]).expect(0).out;
    shows("README.md", &["A dry run prints a shell script."], &script);
    shows("docs/command-line.md", &["A dry run prints a shell script"], &script);
    shows("docs/command-line.md", &["A real run makes the changes itself"], &node.fix(&[]).expect(0).out);
}

/// Times as the page has them.
fn at_the_same_time(text: &str) -> String {
    let word = |word: &str| {
        let is_seconds = word.strip_suffix('s').is_some_and(|number| number.parse::<u32>().is_ok());
        if is_seconds { "12s".to_owned() } else { word.to_owned() }
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_status() {
    let node = Worker::new().with_pod(100).with_loose_rp_filter();
    for _ in 0..5 {
        node.net.ip("route del default table 2");
        node.fix(&[]).expect(0);
    }
    node.net.ip("rule add priority 1536 from 10.0.1.102 lookup 7");
    node.config("kube_proxy: {mode: off}");
    // What systemd knows, which the test of the packages looks at, is as in the page; and it does not show the suspects
    // of this machine.
    let lines = at_the_same_time(&node.fix(&["status"]).expect(0).out);
    let lines = lines.lines().filter(|line| !line.starts_with("  suspect: ")).skip(2);
    let known = "last run  12s ago, exit code 1 (known from systemd)\nnext run  in 48s\n".to_owned();
    let status = lines.fold(known, |text, line| text + line + "\n");
    shows("docs/status.md", &["On this node another program keeps deleting a default route"], &status);
}

#[test]
fn the_explanation() {
    let node = Worker::new().with_pod(100).with_pod(101).without_default(2).with_carrier();
    let said = node.fix(&["explain", "10.0.1.100", "192.0.2.1"]).expect(1).out;
    shows("docs/explain.md", &["\nnode-fixer explain 10.0.1.100 192.0.2.1\n```\n"], &said);
}

#[test]
fn the_check_of_node_problem_detector() {
    let node = Worker::new().with_pod(100).with_pod(101).without_default(2).with_loose_rp_filter();
    let said = node.fix(&["--dry-run", "--output", "npd"]).expect(1).out;
    shows("docs/node-problem-detector.md", &["\nnode-fixer --dry-run --output npd\n```\n"], &said);
}

#[test]
fn the_findings_of_doctor() {
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
    shows("docs/doctor.md", &["This is a node of the Red Hat family"], &ran.out);
}

#[test]
fn each_cause_of_doctor() {
    let row = |check: &node_fixer::doctor::Check| format!("| [`{0}`](#{0}) | {1} |\n", check.cause, check.title);
    let table: String = node_fixer::doctor::ALL.iter().map(row).collect();
    super::table("docs/doctor.md", "| cause | what it is |\n|---|---|\n", &table);
    let page = Page::read("docs/doctor.md").text;
    let mut sections =
        page.split("\n### ").skip_while(|section| !section.starts_with(node_fixer::doctor::ALL[0].cause));
    for check in node_fixer::doctor::ALL {
        let section = sections.next().unwrap_or_else(|| panic!("docs/doctor.md lacks {}", check.cause));
        assert!(
            section.starts_with(&format!("{}\n", check.cause)),
            "docs/doctor.md: {} is expected, not {section}",
            check.cause
        );
        for part in ["**Cause.**", "**Evidence.**", "**Cure.**"] {
            assert_eq!(section.matches(part).count(), 1, "docs/doctor.md: {part} of {}", check.cause);
        }
    }
    assert_eq!(sections.next(), None, "docs/doctor.md has more causes than there are");
}

#[test]
fn each_metric() {
    let text = Counters::default().text(&[("rules", Now::default())]);
    let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(names.len() > 10, "{text}");
    let page = Page::read("docs/metrics.md").text;
    for name in &names {
        assert!(page.contains(&format!("\n| `{name}` | ")), "docs/metrics.md lacks {name}");
    }
    assert_eq!(page.matches("\n| `node_fixer_").count(), names.len(), "docs/metrics.md has more than there are");
}

#[test]
fn each_kind_of_journal_entry() {
    let page = Page::read("docs/journal.md").text;
    for kind in node_fixer::log::KINDS {
        let row = page.lines().find(|line| line.ends_with(&format!("| {} |", kind.id)));
        assert!(row.is_some_and(|row| row.contains(&format!("| {} |", kind.result))), "docs/journal.md: {kind:?}");
    }
}

#[test]
fn each_exit_code() {
    let help = finish(node_fixer().arg("--help").output().unwrap()).expect(0).out;
    let codes = help.lines().skip_while(|line| !line.starts_with("Exit codes")).skip(1).map(str::trim);
    let codes: Vec<_> = codes.map_while(|line| line.split_once(' ')).collect();
    assert_eq!(codes.len(), 7, "{help}");
    let rows: String = codes.iter().map(|(code, meaning)| format!("| {code} | {} |\n", meaning.trim())).collect();
    super::table("docs/command-line.md", "| exit | meaning |\n|---|---|\n", &rows);
}

#[test]
fn each_command_is_in_the_readme() {
    let help = finish(node_fixer().arg("--help").output().unwrap()).expect(0).out;
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names: Vec<_> =
        commands.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").collect();
    assert!(names.len() >= 5, "{help}");
    let readme = Page::read("README.md").text;
    for name in names {
        assert!(readme.contains(&format!("\n| `node-fixer {name}")), "README.md lacks {name}");
    }
}

#[test]
fn each_configuration_is_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.yaml");
    let mut seen = 0;
    for page in pages() {
        for block in page.blocks().into_iter().filter(|block| block.language == "yaml") {
            std::fs::write(&path, &block.text).unwrap();
            let ran = finish(node_fixer().arg("--config").arg(&path).arg("check-config").output().unwrap());
            assert_eq!(ran.code, 0, "{}:{}: {}", page.name(), block.line, ran.err);
            seen += 1;
        }
    }
    assert!(seen > 10);
}

#[test]
fn each_code_block_says_what_it_is() {
    for page in pages() {
        for block in page.blocks() {
            let known = ["sh", "text", "yaml", "json", "ini", "rooms", "sql"].contains(&block.language.as_str());
            assert!(known, "{}:{}: a code block of {:?}", page.name(), block.line, block.language);
        }
    }
}
