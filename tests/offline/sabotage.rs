//! The patches under `tests/sabotage`, without running them: `make sabotage` does that. A patch that no longer applies
//! guards nothing.

use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn sabotage_patches_apply_and_name_their_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for entry in fs::read_dir(root.join("tests/sabotage")).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_none_or(|extension| extension != "patch")
        {
            continue;
        }
        count += 1;
        let name = path.display();
        let applied = Command::new("git")
            .args(["apply", "--check"])
            .arg(&path)
            .current_dir(root)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&applied.stderr);
        assert!(applied.status.success(), "{name}: {error}");
        let text = fs::read_to_string(&path).unwrap();
        let command = text.lines().nth(1).unwrap();
        let arguments = command.strip_prefix("# test: --test ").unwrap();
        let (binary, function) = arguments.split_once(" -- --exact ").unwrap();
        let (module, function) = function.split_once("::").unwrap();
        let source = root.join(format!("tests/{binary}/{module}.rs"));
        let source = fs::read_to_string(source).unwrap();
        assert!(
            source.contains(&format!("fn {function}(")),
            "{name}: {function}"
        );
    }
    assert!(count > 10, "{count}");
}
