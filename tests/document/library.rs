//! Experiments served by name: what a name can reach, and what it cannot.

use std::{fs, os::unix::fs::symlink, path::Path};

use vervet::document::{LARGEST, Library, library::LibraryError};

const VALID: &str = "title = \"T\"\nhypothesis = \"H\"\n[[step]]\nname = \"S\"\nfault = \"kill\"\ntarget = { name = \"w\" }\n";

fn library(root: &Path) -> Library {
    let dir = root.join("experiments");
    fs::create_dir_all(dir.join("incidents")).unwrap();
    fs::write(dir.join("kill-one.toml"), VALID).unwrap();
    fs::write(dir.join("incidents/s3.toml"), VALID).unwrap();
    fs::write(dir.join("broken.toml"), "titel = 1").unwrap();
    fs::write(root.join("outside.toml"), VALID).unwrap();
    Library::new(dir)
}

#[test]
fn valid_and_broken_files_are_listed_by_name() {
    let root = tempfile::tempdir().unwrap();
    let library = library(root.path());
    fs::write(library.dir.join("notes.txt"), "").unwrap();
    fs::write(library.dir.join(".hidden.toml"), VALID).unwrap();
    let list = library.list().unwrap();
    let names: Vec<&str> = list.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["broken", "incidents/s3", "kill-one"]);
    assert!(list[0].error.as_deref().is_some_and(|error| error.contains("`titel`")), "{list:?}");
    assert_eq!((list[1].title.as_str(), &list[1].error), ("T", &None));
}

#[test]
fn a_name_loads_its_text_and_a_wrong_one_says_which_is_near() {
    let root = tempfile::tempdir().unwrap();
    let library = library(root.path());
    let (experiment, source) = library.load("incidents/s3").unwrap();
    assert_eq!((experiment.title.as_str(), source.as_str()), ("T", VALID));
    let error = library.load("kil-one").unwrap_err();
    assert_eq!(error.to_string(), "there is no experiment `kil-one` (did you mean `kill-one`?)");
    assert!(matches!(library.load("broken"), Err(LibraryError::Invalid { .. })));
}

#[test]
fn a_missing_directory_is_an_empty_library() {
    let root = tempfile::tempdir().unwrap();
    let library = Library::new(root.path().join("none"));
    assert_eq!(library.list().unwrap(), []);
    assert!(matches!(library.load("x"), Err(LibraryError::NotFound { near: None, .. })));
}

#[test]
fn names_do_not_leave_the_directory() {
    let root = tempfile::tempdir().unwrap();
    let library = library(root.path());
    let names = [
        "",
        ".",
        "..",
        "/",
        "../outside",
        "..%2foutside",
        "/etc/passwd",
        "incidents/../../outside",
        "a/b/c",
        "incidents/",
        "/kill-one",
        "kill-one\0",
        "kill one",
        "kill-one\n",
        ".hidden",
        "incidents/.s3",
        "a\\b",
    ];
    for name in names {
        let error = library.load(name).unwrap_err();
        assert!(matches!(error, LibraryError::Name(_)), "{name:?}: {error}");
    }
}

#[test]
fn links_do_not_leave_the_directory() {
    let root = tempfile::tempdir().unwrap();
    let library = library(root.path());
    symlink("../outside.toml", library.dir.join("relative.toml")).unwrap();
    symlink(root.path().join("outside.toml"), library.dir.join("absolute.toml")).unwrap();
    symlink(root.path(), library.dir.join("elsewhere")).unwrap();
    symlink("kill-one.toml", library.dir.join("within.toml")).unwrap();
    for name in ["relative", "absolute", "elsewhere/outside"] {
        let error = library.load(name).unwrap_err();
        assert!(matches!(error, LibraryError::Unreadable { .. }), "{name}: {error}");
    }
    library.load("within").unwrap();
    let list = library.list().unwrap();
    assert!(!list.iter().any(|entry| entry.name.starts_with("elsewhere")), "{list:?}");
}

#[test]
fn only_ordinary_files_of_bounded_size_are_read() {
    let root = tempfile::tempdir().unwrap();
    let library = library(root.path());
    fs::write(library.dir.join("large.toml"), vec![b'#'; LARGEST + 10]).unwrap();
    fs::create_dir(library.dir.join("folder.toml")).unwrap();
    let fifo = library.dir.join("fifo.toml");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(library.load("large").unwrap_err().to_string().contains("too many"));
    assert!(library.load("folder").unwrap_err().to_string().contains("not an ordinary file"));
    assert!(library.load("fifo").unwrap_err().to_string().contains("not an ordinary file"));
    fs::write(library.dir.join("kill-one.json"), "{}").unwrap();
    assert!(matches!(library.load("kill-one"), Err(LibraryError::Ambiguous(_))));
}
