//! A container beside an installed node-fixer: it does nothing while that one is active.

use std::fs;

use crate::kit::Worker;

#[test]
fn it_stands_back_while_the_installed_one_is_active_and_goes_on_afterwards() {
    let node = Worker::new().with_pod(100).with_loose_rp_filter().without_default(2);
    let active = node.directory.path().join("state/active");
    fs::create_dir_all(&active).unwrap();
    let before = node.net.state();
    let ran = node.fix(&["--stand-back"]).expect(75);
    assert!(ran.err.contains("node-fixer is installed and active on this node"), "{ran:?}");
    assert!(ran.err.contains("systemctl disable --now node-fixer.timer"), "{ran:?}");
    assert_eq!((ran.out.as_str(), node.net.state()), ("", before.clone()), "{ran:?}");
    // To a probe it is as it shall be, and without the option nothing has changed.
    let ran = node.fix(&["--stand-back", "--dry-run", "--detailed-exitcode", "--output", "json"]).expect(0);
    assert_eq!(ran.json()["changes"].as_array().unwrap().len(), 0, "{ran:?}");
    node.fix(&["--stand-back", "--dry-run", "--output", "npd"]).expect(0);
    node.fix(&["--dry-run", "--detailed-exitcode"]).expect(2);
    fs::remove_dir(&active).unwrap();
    node.fix(&["--stand-back", "--dry-run", "--detailed-exitcode"]).expect(2);
    node.fix(&["--stand-back"]).expect(0);
    assert_ne!(node.net.state(), before);
}
