//! Unit tests of `input.rs`.

use super::*;

fn names(files: &[Input]) -> Vec<&str> {
    files
        .iter()
        .map(|file| file.path.file_name().unwrap().to_str().unwrap())
        .collect()
}

/// The inputs. The error is the reason why an input has no files.
fn found(inputs: &[OsString], choice: Choice<'_>) -> Result<Found, String> {
    let found = collect(inputs, choice)?;
    match found.without.first() {
        Some(without) => Err(without.reason.clone()),
        None => Ok(found),
    }
}

#[test]
fn files_folders_and_globs_are_found_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    for file in [
        "b.csv",
        "a.csv",
        "c.txt",
        "sub/d.csv",
        ".hidden/e.csv",
        "out/f.csv",
    ] {
        let path = root.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }
    let out = root.join("out");
    let find = |input: &str, pattern: Option<&str>| {
        let choice = Choice {
            pattern,
            skip: Some(&out),
            ..Choice::default()
        };
        found(&[root.join(input).into()], choice).map(|found| found.files)
    };
    assert_eq!(
        names(&find("", None).unwrap()),
        ["a.csv", "b.csv", "c.txt", "d.csv"]
    );
    assert_eq!(
        names(&find("", Some("*.csv")).unwrap()),
        ["a.csv", "b.csv", "d.csv"]
    );
    assert_eq!(names(&find("*.csv", None).unwrap()), ["a.csv", "b.csv"]);
    assert_eq!(
        names(&find("**/*.csv", None).unwrap()),
        ["a.csv", "b.csv", "d.csv"]
    );
    assert_eq!(names(&find("c.txt", Some("*.csv")).unwrap()), ["c.txt"]);
    let error = find("out", None).unwrap_err();
    assert!(error.contains("it is the output folder"), "{error}");
    let twice = collect(
        &[root.join("a.csv").into(), root.clone().into()],
        Choice {
            skip: Some(&out),
            ..Choice::default()
        },
    );
    let twice = twice.unwrap().files;
    assert_eq!(names(&twice), ["a.csv", "b.csv", "c.txt", "d.csv"]);
    // Hidden files are reported if the caller would have selected them.
    std::fs::write(root.join(".z.csv"), "").unwrap();
    std::fs::create_dir(root.join(".casparian")).unwrap();
    for (input, want) in [
        ("", "2 names that begin with '.' are skipped"),
        ("*.csv", "1 name that begins with '.' is skipped"),
        ("c*", ""),
    ] {
        let found = collect(&[root.join(input).into()], Choice::default()).unwrap();
        let warned_of = found.warnings.join("\n");
        assert_eq!(
            warned_of.is_empty(),
            want.is_empty(),
            "{input}: {warned_of}"
        );
        assert!(warned_of.ends_with(want), "{input}: {warned_of}");
    }
    // Slashes and dots without effect.
    for glob in [
        "/*.csv",
        "./*.csv",
        ".//.///*.csv",
        "sub/../*.csv",
        "/sub/.././*.csv",
    ] {
        let found = collect(
            &[format!("{}/{glob}", root.display()).into()],
            Choice::default(),
        );
        let found = found.map(|found| found.files);
        assert_eq!(names(&found.unwrap()), ["a.csv", "b.csv"], "{glob}");
    }
    for glob in ["*.csv/", "*.csv/.", "*.csv//"] {
        let error = find(glob, None).unwrap_err();
        assert!(error.contains("no file found"), "{glob}: {error}");
    }
    // The given folder is the root of the files below it.
    let roots = |input: &str| -> Vec<PathBuf> {
        let files = find(input, None).unwrap();
        files.into_iter().map(|file| file.root).collect()
    };
    assert_eq!(roots(""), vec![root.clone(); 4]);
    assert_eq!(roots("**/d.csv"), std::slice::from_ref(&root));
    assert_eq!(roots("sub/d.csv"), [root.join("sub")]);
    rustix::fs::mkfifoat(rustix::fs::CWD, root.join("fifo"), rustix::fs::Mode::RWXU).unwrap();
    assert_eq!(names(&find("", Some("fifo*")).unwrap_or_default()), [""; 0]);
    std::os::unix::fs::symlink("..", root.join("sub/loop")).unwrap();
    std::fs::create_dir(root.join("marks")).unwrap();
    std::fs::write(root.join("marks/_SUCCESS"), "").unwrap();
    for (input, pattern, want) in [
        (".h*", None, "no file found (input "),
        (".h*", None, "begins with '.' is skipped"),
        ("marks", None, "1 name is ignored by the rule _SUCCESS"),
        ("fifo", None, "neither a file nor a folder"),
        ("nothing.csv", None, "No such file"),
        ("*.parquet", None, "no file found"),
        ("", Some("*.xml"), "no file in it matches"),
        ("", Some("[x"), "pattern"),
    ] {
        let error = find(input, pattern).unwrap_err();
        assert!(error.contains(want), "{input}: {error}");
    }
}

#[test]
fn links_out_of_the_folder_are_followed_only_when_asked() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let root = dir.join("in");
    for file in [
        "in/a.csv",
        "in/sub/b.csv",
        "out/c.csv",
        "out/d.csv",
        "in2/e.csv",
    ] {
        std::fs::create_dir_all(dir.join(file).parent().unwrap()).unwrap();
        std::fs::write(dir.join(file), "").unwrap();
    }
    symlink(dir.join("out/c.csv"), root.join("file.csv")).unwrap();
    symlink("../../out", root.join("sub/folder")).unwrap();
    // A folder whose name has the root's name as a prefix.
    symlink("../in2", root.join("twin")).unwrap();
    symlink(dir.join("out/c.csv"), root.join(".hidden.csv")).unwrap();
    symlink(dir.join("out/c.csv"), root.join("other.txt")).unwrap();
    symlink("sub/b.csv", root.join("inside.csv")).unwrap();
    symlink(&root, dir.join("link")).unwrap();
    let find = |input: &str, follow| {
        let choice = Choice {
            pattern: Some("*.csv"),
            follow,
            ..Choice::default()
        };
        found(&[dir.join(input).into()], choice)
    };
    // The named folder may itself be a link.
    for input in ["in", "link"] {
        let found = find(input, false).unwrap();
        assert_eq!(
            names(&found.files),
            ["a.csv", "inside.csv", "b.csv"],
            "{input}"
        );
        assert_eq!(found.left_out, []);
        let mut warned: Vec<&str> = Vec::new();
        for name in ["file.csv", "sub/folder", "twin"] {
            let path = dir.join(input).join(name);
            let start = format!("input {}: it leads out", path.display());
            let mut lines = found.warnings.iter();
            warned.extend(lines.find(|line| line.starts_with(&start)).map(|_| name));
        }
        assert_eq!(warned.len(), 3, "{:?}", found.warnings);
        let hidden = "1 name that begins with '.' is skipped";
        assert_eq!(found.warnings.len(), 4, "{:?}", found.warnings);
        assert!(found.warnings[3].ends_with(hidden), "{:?}", found.warnings);
        let found = find(input, true).unwrap();
        let all = [
            "a.csv",
            "file.csv",
            "inside.csv",
            "b.csv",
            "c.csv",
            "d.csv",
            "e.csv",
        ];
        assert_eq!(names(&found.files), all, "{input}");
        assert_eq!(found.warnings.len(), 1, "{:?}", found.warnings);
        assert!(found.warnings[0].ends_with(hidden), "{:?}", found.warnings);
        let mut files = found.files.iter();
        assert!(files.all(|file| file.root == dir.join(input)), "{input}");
    }
    // A named link is used. If links are the only matches, the error gives the reason.
    let named = find("in/file.csv", false).unwrap().files;
    assert_eq!(names(&named), ["file.csv"]);
    for name in ["a.csv", "inside.csv"] {
        std::fs::remove_file(root.join(name)).unwrap();
    }
    let error = find("in/*", false).unwrap_err();
    assert!(
        error.contains("no file in it matches *.csv (input"),
        "{error}"
    );
    assert!(error.contains("--follow"), "{error}");
}

#[test]
fn entries_that_cannot_be_used_cost_only_themselves() {
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    std::fs::create_dir_all(root.join("sub")).unwrap();
    std::fs::write(root.join("sub/a.csv"), "").unwrap();
    symlink("loop.csv", root.join("loop.csv")).unwrap();
    symlink("nowhere", root.join("broken")).unwrap();
    symlink("nowhere", root.join(".hidden")).unwrap();
    symlink("..", root.join("sub/up")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, root.join("fifo"), rustix::fs::Mode::RWXU).unwrap();
    let odd = OsString::from_vec(b"odd\xff".to_vec());
    std::fs::write(root.join(odd), "").unwrap();
    let find = |name: &str, pattern| {
        let choice = Choice {
            pattern,
            ..Choice::default()
        };
        let found = collect(&[root.join(name).into()], choice).unwrap();
        let reasons = found.left_out.into_iter().map(|out| out.reason);
        (found.files.len(), reasons.collect::<Vec<_>>().join("\n"))
    };
    let (count, reasons) = find("", None);
    assert_eq!(count, 1);
    for (name, want) in [
        ("loop.csv", "Too many levels"),
        ("broken", "No such file"),
        ("odd", "not UTF-8"),
    ] {
        let start = format!("input {}", root.join(name).display());
        let line = reasons.lines().find(|line| line.starts_with(&start));
        assert!(line.is_some_and(|line| line.contains(want)), "{reasons}");
    }
    assert_eq!(reasons.lines().count(), 3, "{reasons}");
    let found = collect(&[root.clone().into()], Choice::default()).unwrap();
    let up = root.join("sub/up").display().to_string();
    assert!(found.warnings.len() == 2 && found.warnings[1].contains(&up));
    let fifo = format!("input {}: it is a FIFO", root.join("fifo").display());
    assert!(found.warnings[0].starts_with(&fifo), "{:?}", found.warnings);
    let (count, reasons) = find("", Some("*.csv"));
    assert_eq!((count, reasons.lines().count()), (1, 1), "{reasons}");
    let (count, reasons) = find("*.csv", None);
    assert_eq!((count, reasons.lines().count()), (0, 1), "{reasons}");
}
