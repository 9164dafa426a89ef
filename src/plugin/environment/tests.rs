//! Unit tests of `environment.rs`.

use super::*;

#[test]
fn requirement_lists_have_one_spelling_and_always_pyarrow() {
    let list = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        requirements_lockfile(&names, Some(">=3.10"), &["pandas".to_owned()])
    };
    let text = list(&["pandas", "numpy>=1", "pandas"]);
    assert_eq!(text, list(&["numpy>=1 ", "pandas", "", "pyarrow"]));
    assert!(text.starts_with(REQUIREMENTS_MARK));
    assert_eq!(preload(&text), ["pandas"]);
    assert!(!list(&["PyArrow==17"]).contains("\npyarrow\n"));
    assert!(list(&["pyarrow-hotfix"]).contains("\npyarrow\n"));
    assert_eq!(hash("").len(), 64);
}

#[test]
fn hashes_that_are_none_or_another_lockfiles_are_refused() {
    let home = tempfile::tempdir().unwrap();
    for bad in ["../../etc", "", "ABC", &"a".repeat(64)] {
        let result = provision(
            home.path(),
            "x",
            Some(bad),
            &Build::default(),
            &AtomicBool::new(false),
            &mut |_| {},
        );
        assert!(matches!(result, Err(Error::Hash { .. })), "{bad}");
    }
    assert_eq!(find(home.path(), "../.."), None);
}

#[test]
fn the_root_of_a_uv_lockfile_is_found() {
    let lock = "version = 1\nrequires-python = \">=3.10\"\n[[package]]\nname = \"a\"\nsource = { registry = \"x\" }\n[[package]]\nname = \"proj\"\nsource = { virtual = \".\" }\n";
    let found = uv_lock(lock).unwrap();
    assert_eq!(found.root.as_deref(), Some("proj"));
    assert_eq!(found.requires_python.as_deref(), Some(">=3.10"));
    assert!(uv_lock("not toml [").is_err());
    check_lockfile(lock).unwrap();
    check_lockfile(&requirements_lockfile(&[], None, &[])).unwrap();
    for bad in [
        "",
        "pandas==2.0\n",
        "a = 1\n",
        "version = \"1\"\n",
        "not toml [",
    ] {
        let reason = check_lockfile(bad).unwrap_err();
        assert!(reason.starts_with("it is not a uv.lock: "), "{reason}");
    }
}
