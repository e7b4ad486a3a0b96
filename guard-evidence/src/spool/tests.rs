//! Crashes and damage at every byte.

use super::*;

const SMALL: Options = Options {
    segment_bytes: 200,
    max_bytes: 1 << 20,
};

fn body(n: usize) -> Vec<u8> {
    format!("record {n} {}", "x".repeat(n % 50)).into_bytes()
}

fn filled(dir: &Path, options: Options, n: usize) -> Spool {
    let mut spool = Spool::open(dir, options).unwrap().spool;
    for i in 1..=n {
        assert_eq!(spool.append(&body(i)).unwrap(), i as u64);
    }
    assert_eq!(spool.sync().unwrap(), n as u64);
    spool
}

fn only_segment(dir: &Path) -> PathBuf {
    let mut paths = segment_paths(dir).unwrap();
    assert_eq!(paths.len(), 1);
    paths.remove(0).1
}

#[test]
fn frames_come_back_in_order_over_segments() {
    let dir = tempfile::tempdir().unwrap();
    let spool = filled(dir.path(), SMALL, 100);
    assert!(segment_paths(dir.path()).unwrap().len() > 5);
    let mut reader = spool.reader(1);
    let mut seen = Vec::new();
    loop {
        let frames = reader.read(spool.durable(), 7, 1 << 20).unwrap();
        if frames.is_empty() {
            break;
        }
        seen.extend(frames);
    }
    assert_eq!(seen, (1..=100).map(|i| (i as u64, body(i))).collect::<Vec<_>>());
    let mut reader = spool.reader(57);
    assert_eq!(reader.read(100, 1, 1).unwrap(), vec![(57, body(57))]);
    drop(spool);
    let opened = Spool::open(dir.path(), SMALL).unwrap();
    assert_eq!(
        (opened.spool.written(), opened.cut, opened.last),
        (100, None, Some(body(100)))
    );
}

#[test]
fn a_reader_follows_the_writer() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = filled(dir.path(), SMALL, 3);
    let mut reader = spool.reader(1);
    assert_eq!(reader.read(spool.durable(), 10, 1 << 20).unwrap().len(), 3);
    for i in 4..=40 {
        spool.append(&body(i)).unwrap();
        assert!(
            reader.read(spool.durable(), 10, 1 << 20).unwrap().is_empty(),
            "not durable yet"
        );
        spool.sync().unwrap();
        assert_eq!(
            reader.read(spool.durable(), 10, 1 << 20).unwrap(),
            vec![(i as u64, body(i))]
        );
    }
}

#[test]
fn acknowledged_segments_go_and_the_last_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = filled(dir.path(), SMALL, 100);
    spool.acknowledge(50).unwrap();
    assert!(spool.first() <= 51 && spool.first() > 30);
    assert!(matches!(
        spool.reader(1).read(100, 1, 1),
        Err(SpoolError::NoSuchPosition { position: 1, .. })
    ));
    assert_eq!(spool.reader(51).read(100, 1, 1).unwrap(), vec![(51, body(51))]);
    spool.acknowledge(u64::MAX).unwrap();
    assert_eq!(segment_paths(dir.path()).unwrap().len(), 1);
    drop(spool);
    let mut opened = Spool::open(dir.path(), SMALL).unwrap();
    assert_eq!(opened.last, Some(body(100)));
    assert_eq!(opened.spool.append(b"next").unwrap(), 101);
}

#[test]
fn a_cut_at_every_byte_of_the_last_frame_loses_only_that_frame() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), Options::default(), 5));
    let path = only_segment(dir.path());
    let whole = fs::read(&path).unwrap();
    let last_frame = whole.len() - FRAME_HEADER - body(5).len();
    for end in last_frame..whole.len() {
        fs::write(&path, &whole[..end]).unwrap();
        let opened = Spool::open(dir.path(), Options::default()).unwrap();
        assert_eq!(opened.last, Some(body(4)), "cut at {end}");
        let expected = (end > last_frame).then(|| Cut {
            path: path.clone(),
            offset: last_frame as u64,
            bytes: (end - last_frame) as u64,
        });
        assert_eq!(opened.cut, expected, "cut at {end}");
        drop(opened);
        assert_eq!(fs::metadata(&path).unwrap().len(), last_frame as u64);
        let mut again = Spool::open(dir.path(), Options::default()).unwrap();
        assert_eq!(again.cut, None);
        assert_eq!(again.spool.append(b"new").unwrap(), 5);
    }
}

#[test]
fn a_torn_batch_and_a_tail_of_zeros_are_cut() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), Options::default(), 5));
    let path = only_segment(dir.path());
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole[..], &[0; 4096]].concat()).unwrap();
    let opened = Spool::open(dir.path(), Options::default()).unwrap();
    assert_eq!((opened.last, opened.cut.map(|c| c.bytes)), (Some(body(5)), Some(4096)));
}

#[test]
fn a_cut_in_the_header_of_a_new_segment_is_made_good() {
    for end in 0..SEGMENT_HEADER {
        let dir = tempfile::tempdir().unwrap();
        drop(filled(dir.path(), Options::default(), 3));
        let path = dir.path().join(format!("{:020}.seg", 4));
        fs::write(&path, &segment_header(4)[..end]).unwrap();
        let mut opened = Spool::open(dir.path(), Options::default()).unwrap();
        assert_eq!(opened.last, Some(body(3)));
        assert_eq!(opened.spool.append(b"four").unwrap(), 4);
        opened.spool.sync().unwrap();
        drop(opened);
        let opened = Spool::open(dir.path(), Options::default()).unwrap();
        assert_eq!((opened.last, opened.cut), (Some(b"four".to_vec()), None));
    }
}

#[test]
fn damage_in_the_middle_is_never_cut() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), Options::default(), 5));
    let path = only_segment(dir.path());
    let whole = fs::read(&path).unwrap();
    let last_frame = whole.len() - FRAME_HEADER - body(5).len();
    for at in SEGMENT_HEADER..last_frame {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x80;
        fs::write(&path, &damaged).unwrap();
        let error = Spool::open(dir.path(), Options::default()).unwrap_err();
        assert!(matches!(error, SpoolError::Damaged { .. }), "byte {at}: {error}");
        assert_eq!(fs::read(&path).unwrap(), damaged, "nothing was changed");
    }
    // In the header of a segment with frames, too.
    for at in 0..SEGMENT_HEADER {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&path, &damaged).unwrap();
        assert!(matches!(
            Spool::open(dir.path(), Options::default()),
            Err(SpoolError::Damaged { .. })
        ));
    }
    let moved = set_aside(dir.path()).unwrap();
    assert_eq!(moved.len(), 1);
    let opened = Spool::open(dir.path(), Options::default()).unwrap();
    assert_eq!(opened.spool.written(), 0);
}

#[test]
fn damage_at_the_end_of_an_earlier_segment_and_a_missing_segment_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), SMALL, 30));
    let paths = segment_paths(dir.path()).unwrap();
    let first = &paths[0].1;
    let whole = fs::read(first).unwrap();
    fs::write(first, &whole[..whole.len() - 3]).unwrap();
    assert!(matches!(
        Spool::open(dir.path(), SMALL),
        Err(SpoolError::Damaged { .. })
    ));
    fs::write(first, &whole).unwrap();
    fs::remove_file(&paths[1].1).unwrap();
    assert!(matches!(
        Spool::open(dir.path(), SMALL),
        Err(SpoolError::Damaged { offset: 0, .. })
    ));
}

#[test]
fn limits_and_lock() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(
        dir.path(),
        Options {
            segment_bytes: 100,
            max_bytes: 300,
        },
    )
    .unwrap()
    .spool;
    assert!(matches!(spool.append(b""), Err(SpoolError::FrameSize(0))));
    assert!(matches!(
        spool.append(&vec![0; RECORD_BYTES + 1]),
        Err(SpoolError::FrameSize(_))
    ));
    assert!(matches!(Spool::open(dir.path(), SMALL), Err(SpoolError::Locked { .. })));
    let mut n = 0;
    while spool.append(&[1; 50]).is_ok() {
        n += 1;
    }
    assert!((3..=5).contains(&n));
    assert!(matches!(
        spool.append(&[1; 50]),
        Err(SpoolError::Full { limit: 300, .. })
    ));
    assert_eq!(spool.sync().unwrap(), n);
    spool.acknowledge(n).unwrap();
    spool.append(&[1; 50]).unwrap();
}

#[test]
fn any_bytes_parse_without_panic() {
    let mut state = 1u32;
    for n in 0..2000usize {
        let bytes: Vec<u8> = (0..n % 64)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        let _ = frames_of_segment(&bytes);
        scan(&bytes, 1);
    }
}
