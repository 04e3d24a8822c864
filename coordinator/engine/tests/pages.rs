//! The worked example is what the files say.
#![expect(clippy::disallowed_methods, reason = "pages are files")]

use std::path::Path;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn change_a_policy_shows_what_is_there() {
    let page = read("docs/examples/change-a-policy.md");
    let mut blocks = 0;
    for part in page.split(" file=").skip(1) {
        let (file, after) = part.split_once('\n').expect("a block follows its file's name");
        let (block, _) = after.split_once("```").expect("a block ends");
        assert!(read(file).contains(block), "{file} does not hold this part of the example:\n{block}");
        blocks += 1;
    }
    assert_eq!(blocks, 3);
    for test in page.split("--test ").skip(1) {
        let name = test.split_whitespace().next().unwrap_or_default();
        assert!(!read(&format!("coordinator/engine/tests/{name}.rs")).is_empty());
    }
}
