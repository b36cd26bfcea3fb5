//! What is published beside the program fits to it and to itself.

use std::fs;

use serde_json::Value;

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(text: &str) -> Value {
    serde_yaml::from_str(text).unwrap()
}

#[test]
fn the_version_is_that_of_cargo_toml_everywhere() {
    let version = env!("CARGO_PKG_VERSION");
    for (path, text) in [
        ("config/kubernetes/base/kustomization.yaml", format!("newTag: {version}\n")),
        ("config/kubernetes/kustomization.yaml", format!("newTag: {version}}}]")),
        ("config/cloud-init.yaml", format!("version={version}\n")),
        ("config/cloud-init.yaml", format!("node-fixer_{version}-1_arm64.deb\n")),
        ("config/fleet/user-data.mime", format!("version={version}\n")),
        ("config/fleet/user-data.mime", format!("node-fixer-{version}-1.aarch64.rpm\n")),
        ("config/fleet/ami.pkr.hcl", format!("default = \"{version}\"\n")),
        ("config/ansible/roles/node_fixer/defaults/main.yml", format!("node_fixer_version: {version}\n")),
    ] {
        assert!(read(path).contains(&text), "{path} has no {text:?}");
    }
}

#[test]
fn no_page_and_no_example_names_another_version() {
    let version = env!("CARGO_PKG_VERSION");
    let named =
        regex::Regex::new(r"(?:node-fixer[-_:/]|release-|newTag: |version=|node_fixer_version: |tag v)(\d+\.\d+\.\d+)")
            .unwrap();
    let files = walk("docs").into_iter().chain(walk("config")).chain(["README.md".to_owned()]);
    let mut seen = 0;
    for path in files.filter(|path| !path.ends_with(".svg")) {
        for found in named.captures_iter(&read(&path)) {
            assert_eq!(&found[1], version, "{path}: {}", &found[0]);
            seen += 1;
        }
    }
    assert!(seen > 20, "only {seen} are found: the test is wrong");
}

/// The files below a directory.
fn walk(directory: &str) -> Vec<String> {
    fs::read_dir(directory)
        .unwrap()
        .flat_map(|entry| {
            let entry = entry.unwrap();
            let path = entry.path().to_str().unwrap().to_owned();
            if entry.file_type().unwrap().is_dir() { walk(&path) } else { vec![path] }
        })
        .collect()
}

#[test]
fn the_monitor_of_the_pods_is_that_of_the_nodes() {
    let pods = read("config/kubernetes/node-problem-detector/node-fixer.json");
    let of_nodes = pods.replace("/opt/node-fixer/usr/bin", "/usr/bin").replace("\"--stand-back\", ", "");
    assert_eq!(of_nodes, read("config/node-problem-detector.json"));
}

#[test]
fn the_rules_for_the_operator_are_the_alerts() {
    let operator = yaml(&read("config/prometheus/prometheus-rule.yaml"));
    assert_eq!(operator["spec"], yaml(&read("config/prometheus/alerts.yaml")));
}

#[test]
fn user_data_is_the_same_for_karpenter() {
    let script = |text: &str| {
        let (_, script) = text.split_once("\n#!/bin/sh\n").unwrap();
        script.split_once("\n--NODE-FIXER").unwrap().0.trim().to_owned()
    };
    let karpenter = yaml(&read("config/fleet/karpenter.yaml"));
    assert_eq!(script(karpenter["spec"]["userData"].as_str().unwrap()), script(&read("config/fleet/user-data.mime")));
}
