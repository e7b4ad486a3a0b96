use super::*;
use crate::config::LabelPattern;
use crate::testing::{self, Rig, rig};
use std::sync::mpsc;

fn labels(rig: &Rig, own: &str, patterns: &[(&str, &str)]) -> (Labels, mpsc::Receiver<ToKernel>) {
    let (kernel, sent) = KernelHandle::pair_for_tests();
    (
        Labels::at(
            &rig.cgroups,
            &rig.state,
            rules(testing::patterns(patterns)),
            own,
            kernel,
            rig.evidence.clone(),
        )
        .unwrap(),
        sent,
    )
}

fn rules(patterns: Vec<LabelPattern>) -> LabelRules {
    LabelRules {
        patterns,
        ..LabelRules::default()
    }
}

/// What was sent besides what holds for labels.
fn messages(sent: &mpsc::Receiver<ToKernel>) -> Vec<ToKernel> {
    sent.try_iter()
        .filter(|message| !matches!(message, ToKernel::Settings { .. }))
        .collect()
}

fn make(rig: &Rig, path: &str) -> u64 {
    let directory = rig.cgroups.join(&path[1..]);
    fs::create_dir_all(&directory).unwrap();
    fs::metadata(directory).unwrap().ino()
}

#[test]
fn patterns_and_outermost() {
    let rig = rig();
    let outer = make(&rig, "/system.slice/agent-1.service");
    make(&rig, "/system.slice/agent-1.service/inner");
    make(&rig, "/system.slice/ssh.service");
    let (labels, sent) = labels(
        &rig,
        "/system.slice/guard.service",
        &[("coder", "/system.slice/agent-*.service"), ("inner", "/**/inner")],
    );
    labels.scan();
    labels.scan();
    let messages = messages(&sent);
    assert!(
        matches!(messages[..], [ToKernel::Label { cgroup, label: LabelId(1) }] if cgroup == outer),
        "{messages:?}"
    );
    assert_eq!(
        labels.above("/system.slice/agent-1.service/inner/x").unwrap().1,
        "coder"
    );
    assert_eq!(labels.above("/system.slice/agent-10.service"), None);
    assert_eq!(labels.name(LabelId(1)).as_deref(), Some("coder"));
    assert!(matches!(
        labels.add("other", "/system.slice/agent-1.service/inner", Source::Command),
        Err(LabelError::Inner { .. })
    ));
    let new = make(&rig, "/system.slice/agent-2.service");
    labels.made(new, Path::new("/system.slice/agent-2.service"));
    assert!(matches!(sent.try_recv(), Ok(ToKernel::Label { cgroup, .. }) if cgroup == new));
    assert_eq!(labels.list().len(), 2);
    fs::remove_dir(rig.cgroups.join("system.slice/agent-2.service")).unwrap();
    labels.scan();
    assert!(matches!(sent.try_recv(), Ok(ToKernel::Unlabel { cgroup }) if cgroup == new));
}

#[test]
fn the_agent_never_labels_itself() {
    let rig = rig();
    make(&rig, "/system.slice/guard.service");
    make(&rig, "/system.slice/guard.service/below");
    let (labels, sent) = labels(&rig, "/system.slice/guard.service", &[("all", "/**")]);
    labels.scan();
    for path in ["/system.slice", "/system.slice/guard.service"] {
        assert!(
            matches!(labels.add("x", path, Source::Command), Err(LabelError::Own(_))),
            "{path}"
        );
    }
    // What is below the agent's own cgroup is not the agent.
    let messages = messages(&sent);
    assert_eq!(messages.len(), 1, "{messages:?}");
}

#[test]
fn what_holds_for_a_label_is_told_before_it_is_in_force() {
    let rig = rig();
    make(&rig, "/a");
    make(&rig, "/b");
    let strict = LabelSettings {
        away: crate::kernel::Away::Deny,
        pending: 3,
        looping: 2,
        tasks: 7,
        sockets: 5,
        allow: crate::kernel::Allowed::default(),
        writes: crate::kernel::Writes::Free,
    };
    let rules = LabelRules {
        settings: [("strict".to_owned(), strict)].into(),
        ..LabelRules::default()
    };
    let told = LabelSettings {
        pending: 3 + PENDING_HEADROOM,
        ..strict
    };
    for _ in 0..2 {
        let (kernel, sent) = KernelHandle::pair_for_tests();
        let labels = Labels::at(
            &rig.cgroups,
            &rig.state,
            rules.clone(),
            "/x",
            kernel,
            rig.evidence.clone(),
        )
        .unwrap();
        labels.add("strict", "/a", Source::Command).unwrap();
        labels.add("other", "/b", Source::Command).unwrap();
        let sent: Vec<_> = sent.try_iter().collect();
        let at =
            |wanted: &dyn Fn(&ToKernel) -> bool| sent.iter().position(wanted).unwrap_or_else(|| panic!("{sent:?}"));
        let strict_told = at(&|m| matches!(m, ToKernel::Settings { label: LabelId(1), settings } if *settings == told));
        let labelled = at(&|m| matches!(m, ToKernel::Label { label: LabelId(1), .. }));
        assert!(strict_told < labelled, "{sent:?}");
        at(
            &|m| matches!(m, ToKernel::Settings { label: LabelId(2), settings } if settings.away == crate::kernel::Away::Park),
        );
        assert_eq!(
            (labels.pending_limit(LabelId(1)), labels.pending_limit(LabelId(2))),
            (3, 1_000)
        );
    }
}

#[test]
fn what_asking_depends_on_is_never_labelled() {
    let rig = rig();
    make(&rig, "/init.scope");
    make(&rig, "/system.slice/systemd-journald.service/below");
    make(&rig, "/system.slice/guard-console.service");
    let inner = make(&rig, "/docker/abc/init.scope");
    let (labels, sent) = labels(
        &rig,
        "/guard-agent",
        &[("all", "/**/*.scope"), ("all", "/**/*.service")],
    );
    labels.scan();
    let messages = messages(&sent);
    assert!(
        matches!(messages[..], [ToKernel::Label { cgroup, .. }] if cgroup == inner),
        "{messages:?}"
    );
    for path in [
        "/init.scope",
        "/system.slice",
        "/system.slice/systemd-journald.service",
        "/system.slice/systemd-journald.service/below",
        "/system.slice/guard-console.service",
    ] {
        let error = labels.add("x", path, Source::Command).unwrap_err();
        assert!(matches!(error, LabelError::Needed { .. }), "{path}: {error}");
        assert!(error.to_string().contains("nobody could be asked"), "{error}");
    }
}

#[test]
fn ids_outlive_the_agent() {
    let rig = rig();
    make(&rig, "/a");
    make(&rig, "/b");
    let (first, _sent) = labels(&rig, "/x", &[]);
    first.add("one", "/a", Source::Command).unwrap();
    first.add("two", "/b", Source::Command).unwrap();
    let (second, _sent) = labels(&rig, "/x", &[]);
    assert_eq!(second.name(LabelId(1)).as_deref(), Some("one"));
    assert_eq!(second.name(LabelId(2)).as_deref(), Some("two"));
    fs::write(rig.state.join("labels.json"), "{").unwrap();
    let (kernel, _sent) = KernelHandle::pair_for_tests();
    assert!(
        Labels::at(
            &rig.cgroups,
            &rig.state,
            rules(vec![]),
            "/x",
            kernel,
            rig.evidence.clone()
        )
        .is_err()
    );
}

#[test]
fn bad_names_and_paths() {
    let rig = rig();
    make(&rig, "/a");
    let (labels, _sent) = labels(&rig, "/x", &[]);
    assert!(matches!(
        labels.add("Bad", "/a", Source::Command),
        Err(LabelError::Name(_))
    ));
    for path in ["", "/", "a", "/a/", "/a/../b", "/./a", "//a", "/a\0"] {
        assert!(
            matches!(labels.add("ok", path, Source::Command), Err(LabelError::Path(_))),
            "{path}"
        );
    }
    assert!(matches!(
        labels.add("ok", "/none", Source::Command),
        Err(LabelError::Gone(..))
    ));
    assert!(matches!(labels.remove("/a"), Err(LabelError::NotLabelled(_))));
}

#[tokio::test]
async fn who_labels_hears_when_it_is_in_force() {
    let rig = rig();
    let id = make(&rig, "/a");
    let (labels, _sent) = labels(&rig, "/x", &[]);
    let wait = labels.add("ok", "/a", Source::Run).unwrap();
    labels.applied(id, &Ok(()));
    assert_eq!(wait.await.unwrap(), Ok(()));
    assert_eq!(labels.add("ok", "/a", Source::Run).unwrap().await.unwrap(), Ok(()));
}
