//! What comes out of a bundle, and what nobody gets into one.

use super::*;

fn bundle(records: &[u64]) -> Vec<u8> {
    let mut writer = Writer::new(
        Vec::new(),
        b"{}",
        "note",
        "o",
        Filter::default(),
        "2026-11-21T10:00:00Z",
    )
    .unwrap();
    for index in records {
        writer
            .record(*index, format!("record {index}").as_bytes(), vec![[1; 32]])
            .unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("b");
    unpack(bundle(&[0, 7, 1_234_567_890]).as_slice(), &dir).unwrap();
    let bundle = Bundle::open(&dir).unwrap();
    assert_eq!(bundle.indices, [0, 7, 1_234_567_890]);
    assert_eq!(bundle.manifest.records, 3);
    assert_eq!(bundle.record(7).unwrap(), b"record 7");
    assert_eq!(Proof::parse(&bundle.proof(7).unwrap()).unwrap().index, 7);
    assert_eq!(bundle.checkpoint().unwrap(), b"note");
    assert!(bundle.strangers.is_empty());
    for (name, digest) in &bundle.manifest.files {
        assert_eq!(bundle.digest(name).unwrap(), *digest, "{name}");
    }
    fs::write(dir.join("records/000000008.json"), "x").unwrap();
    fs::write(dir.join("evil\u{1b}.sh"), "x").unwrap();
    let bundle = Bundle::open(&dir).unwrap();
    assert_eq!(bundle.strangers, ["evil⟨U+001B⟩.sh", "records/000000008.json"]);
    assert_eq!(bundle.indices, [0, 7, 8, 1_234_567_890]);
}

fn tar_of(name: &str, kind: tar::EntryType, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o777);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(vec![b'x'; usize::try_from(size.div_ceil(512) * 512).unwrap()]);
    bytes.extend([0; 1024]);
    bytes
}

#[test]
fn nothing_leaves_the_folder() {
    use tar::EntryType;
    let parent = tempfile::tempdir().unwrap();
    for (n, name) in [
        "../evil",
        "/tmp/evil",
        "records/../../evil",
        "records/1.json",
        "records/+00000001.json",
        "records/000000001.json/x",
        "trust.json/../evil",
        "other",
        "records\\000000001.json",
    ]
    .iter()
    .enumerate()
    {
        let dir = parent.path().join(n.to_string());
        let error = unpack(tar_of(name, EntryType::Regular, 1).as_slice(), &dir).unwrap_err();
        assert!(matches!(error, BundleError::Name(_)), "{name}: {error}");
    }
    for (n, kind) in [EntryType::Symlink, EntryType::Link, EntryType::Char, EntryType::Fifo]
        .into_iter()
        .enumerate()
    {
        let dir = parent.path().join(format!("k{n}"));
        let error = unpack(tar_of("checkpoint", kind, 0).as_slice(), &dir).unwrap_err();
        assert!(matches!(error, BundleError::NotAFile(_)), "{error}");
    }
    let dir = parent.path().join("large");
    let error = unpack(
        tar_of("checkpoint", EntryType::Regular, CHECKPOINT_BYTES as u64 + 1).as_slice(),
        &dir,
    )
    .unwrap_err();
    assert!(matches!(error, BundleError::TooLarge { .. }));
    let one = tar_of("checkpoint", EntryType::Regular, 1);
    let twice = [&one[..1024], &one].concat();
    assert!(matches!(
        unpack(twice.as_slice(), &parent.path().join("twice")),
        Err(BundleError::Twice(_))
    ));
    assert!(
        unpack(&b"not a tar"[..], &parent.path().join("text")).is_err()
            || Bundle::open(&parent.path().join("text")).is_err()
    );
    assert!(!parent.path().join("evil").exists());
}

#[test]
fn links_in_a_folder_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("b");
    unpack(bundle(&[0]).as_slice(), &dir).unwrap();
    fs::remove_file(dir.join("records/000000000.json")).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", dir.join("records/000000000.json")).unwrap();
    assert!(matches!(
        Bundle::open(&dir).unwrap().record(0),
        Err(BundleError::NotAFile(_))
    ));
}

#[test]
fn manifests_are_strict() {
    let good = br#"{"kind":"urn:guard:bundle:v1","created_at":"x","origin":"o","records":0,"files":{}}"#;
    assert!(Manifest::parse(good).is_ok());
    let text = String::from_utf8(good.to_vec()).unwrap();
    for (from, to) in [
        (":v1", ":v2"),
        ("\"records\"", "\"x\":1,\"records\""),
        ("{}", r#"{"../x":"00"}"#),
        ("{}", r#"{"checkpoint":"00"}"#),
        (
            "{}",
            r#"{"MANIFEST.json":"0000000000000000000000000000000000000000000000000000000000000000"}"#,
        ),
    ] {
        assert!(Manifest::parse(text.replace(from, to).as_bytes()).is_err(), "{to}");
    }
}
