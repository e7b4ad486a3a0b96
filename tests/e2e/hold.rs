//! What the held program sees.

use anyhow::{Context, Result};
use guard_tests::scene::{CODER, Scene, end, eventually, expect_error_says, expect_status, until_line};
use guard_tests::{Case, case, check};
use xtask::stage::{PATIENCE, Request};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "hold::unknown_label_asks_for_every_exec",
            "a label without policy is asked for every exec; approved, each runs",
            every_exec,
        ),
        case(
            "hold::exit_status_and_input_are_kept",
            "guard run passes standard input and the exit status through",
            status_and_input,
        ),
        case(
            "hold::denied_is_eperm",
            "a denied exec fails with EPERM and the script goes on",
            denied_is_eperm,
        ),
        case(
            "hold::nothing_runs_before_the_answer",
            "a held program has no effect until it is approved",
            nothing_before,
        ),
        case(
            "hold::two_at_once",
            "two held threads are answered independently, the later one first",
            two_at_once,
        ),
        case(
            "hold::killed_process_withdraws",
            "the request of a held process that is killed is withdrawn",
            killed_withdraws,
        ),
        case(
            "hold::changed_argv_is_killed",
            "an argv changed by another thread after the question is killed before its first instruction",
            changed_argv,
        ),
        case(
            "hold::nested_interpreters",
            "a script whose interpreter is a script is asked once and runs",
            nested_interpreters,
        ),
        case(
            "hold::missing_program_is_not_asked",
            "an exec that fails by itself fails as without Guard",
            missing_program,
        ),
        case(
            "hold::unlabelled_is_unaffected",
            "processes without label run at once and ask nobody",
            unlabelled,
        ),
        case(
            "hold::signal_while_held",
            "a signal's handler runs while its process is held, and the exec still waits",
            signal_while_held,
        ),
    ]
}

fn every_exec() -> Result<()> {
    let scene = Scene::new()?;
    let running = scene.script("nobody-knows", "/bin/echo one; /bin/echo two; exit 7")?;
    for word in ["one", "two"] {
        let request = scene.approve_next("nobody-knows", word)?;
        check!(request.action == "exec", "{request:?}");
        check!(
            request.state == "approved" && request.outcome.as_deref() == Some("ran"),
            "{request:?}"
        );
        check!(
            request.decisions.len() == 1 && request.decisions[0].by == "approver",
            "{:?}",
            request.decisions
        );
    }
    let output = end(running)?;
    check!(output.text() == "one\ntwo" && output.status == 7, "{output}");
    expect_error_says(&output, &["held", "approved", "approver"])?;
    check!(
        scene.request_count()? == 3,
        "three execs, {} requests",
        scene.request_count()?
    );
    Ok(())
}

fn status_and_input() -> Result<()> {
    let scene = Scene::new()?;
    let mut running = scene.start_labelled(CODER, &["/bin/cat", "-"])?;
    running.input(b"through\n")?;
    running.close_input()?;
    scene.approve_next(CODER, "cat")?;
    let output = end(running)?;
    check!(output.text() == "through" && output.status == 0, "{output}");

    let running = scene.start_labelled(CODER, &["/bin/bash", "-c", "exit 37"])?;
    scene.approve_next(CODER, "exit 37")?;
    expect_status(&end(running)?, 37)
}

fn denied_is_eperm() -> Result<()> {
    let scene = Scene::new()?;
    let running = scene.script(CODER, "/usr/bin/id; echo after $?; /bin/echo still here")?;
    let request = scene.held(CODER, "id")?;
    scene.deny(&request, "not today")?;
    let request = scene.follow(&request.id, "denied", Request::settled)?;
    check!(
        request.state == "denied" && request.outcome.as_deref() == Some("denied"),
        "{request:?}"
    );
    check!(request.decisions[0].reason == "not today", "{request:?}");
    scene.approve_next(CODER, "still here")?;
    let output = end(running)?;
    check!(output.text() == "after 126\nstill here", "{output}");
    expect_error_says(&output, &["Operation not permitted", "denied", "not today"])?;

    // And when it is the first exec itself: guard says so and gives the shell's status.
    let running = scene.start_labelled(CODER, &["/usr/bin/id"])?;
    let request = scene.held(CODER, "id")?;
    scene.deny(&request, "nor now")?;
    let output = end(running)?;
    check!(output.status == 126 && output.stdout.is_empty(), "{output}");
    expect_error_says(&output, &["nor now"])
}

fn nothing_before() -> Result<()> {
    let scene = Scene::new()?;
    let running = scene.start_labelled(CODER, &["/usr/bin/touch", "/root/touched"])?;
    let request = scene.held(CODER, "touch")?;
    // Long enough for every stage of the hold, parking included.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let there = scene.vm.run(&["/usr/bin/test", "-e", "/root/touched"])?;
    check!(there.status == 1, "it ran while it was held");
    check!(scene.request(&request.id)?.pending(), "it did not stay pending");
    scene.approve(&request)?;
    expect_status(&end(running)?, 0)?;
    scene.vm.script("test -e /root/touched")?;
    Ok(())
}

fn two_at_once() -> Result<()> {
    let scene = Scene::new()?;
    let first = scene.start_labelled(CODER, &["/bin/echo", "first"])?;
    let one = scene.held(CODER, "first")?;
    let second = scene.start_labelled("other", &["/bin/echo", "second"])?;
    let two = scene.held("other", "second")?;
    scene.approve(&two)?;
    check!(end(second)?.text() == "second", "the second did not run");
    check!(scene.request(&one.id)?.pending(), "the first is no longer pending");
    scene.approve(&one)?;
    check!(end(first)?.text() == "first", "the first did not run");

    // The same in one process group: two children of one shell.
    let running = scene.script(CODER, "/bin/echo left & /bin/echo right & wait")?;
    let left = scene.held(CODER, "left")?;
    let right = scene.held(CODER, "right")?;
    scene.deny(&right, "only one")?;
    scene.approve(&left)?;
    let output = end(running)?;
    check!(output.text() == "left", "{output}");
    expect_error_says(&output, &["Operation not permitted"])
}

fn killed_withdraws() -> Result<()> {
    let scene = Scene::new()?;
    let running = scene.start_labelled(CODER, &["/bin/sleep", "1000"])?;
    let request = scene.held(CODER, "sleep 1000")?;
    let tid = request.statement["predicate"]["workload"]["pid"]
        .as_u64()
        .context("no pid in the record")?;
    scene.vm.script(&format!("kill -9 {tid}"))?;
    let request = scene.follow(&request.id, "withdrawn", |request| !request.pending())?;
    check!(request.state == "withdrawn", "{request:?}");
    check!(end(running)?.status != 0, "guard run did not notice");
    let late = scene.answer(&scene.approver, &request, "approve", "")?;
    check!(late.status == 409, "an answer to a withdrawn request: {late}");
    Ok(())
}

fn changed_argv() -> Result<()> {
    let scene = Scene::new()?;
    scene.vm.put(xtask::demo::swap_program()?, "/usr/local/bin/swap")?;
    scene.vm.script("mkdir -p /root/build /root/data.")?;
    let argv = [
        "/usr/local/bin/swap",
        "/root/go",
        "/root/done",
        "/root/build",
        "/root/data.",
        "/usr/bin/rm",
        "-r",
    ];
    let running = scene.start_labelled(CODER, &argv)?;
    let first = scene.held(CODER, "swap")?;
    scene.approve(&first)?;
    scene.follow(&first.id, "running", Request::settled)?;
    let request = scene.wait_for(PATIENCE, "the request for rm", |request| {
        request.pending() && request.id != first.id
    })?;
    check!(request.what.contains("/root/build"), "{request:?}");
    scene.vm.script("touch /root/go")?;
    eventually(PATIENCE, || scene.vm.script("test -e /root/done").map(drop)).context("the thread did not rewrite")?;
    scene.approve(&request)?;
    let request = scene.follow(&request.id, "killed", Request::settled)?;
    check!(request.outcome.as_deref() == Some("killed"), "{request:?}");
    check!(
        request
            .outcome_detail
            .as_deref()
            .is_some_and(|detail| detail.contains("arguments")),
        "{request:?}"
    );
    expect_status(&end(running)?, 137)?;
    scene
        .vm
        .script("test -d /root/build && test -d /root/data.")
        .context("it ran something")?;
    Ok(())
}

fn nested_interpreters() -> Result<()> {
    let scene = Scene::new()?;
    scene.vm.write(
        b"#!/bin/bash\nprintf 'inner got %s\\n' \"${1##*/}\"\n",
        "/usr/local/bin/inner",
        0o755,
    )?;
    scene.vm.write(
        b"#!/usr/local/bin/inner\nnot read by anybody\n",
        "/usr/local/bin/outer",
        0o755,
    )?;
    let running = scene.start_labelled(CODER, &["/usr/local/bin/outer"])?;
    let request = scene.approve_next(CODER, "outer")?;
    check!(request.outcome.as_deref() == Some("ran"), "{request:?}");
    let output = end(running)?;
    check!(output.text() == "inner got outer" && output.status == 0, "{output}");
    check!(scene.request_count()? == 1, "asked {} times", scene.request_count()?);
    Ok(())
}

fn missing_program() -> Result<()> {
    let scene = Scene::new()?;
    scene.vm.write(b"not executable\n", "/root/plain", 0o644)?;
    let running = scene.script(CODER, "/no/such/program; echo $?; /root/plain; echo $?; /bin/echo end")?;
    scene.approve_next(CODER, "end")?;
    let output = end(running)?;
    check!(output.text() == "127\n126\nend", "{output}");
    expect_error_says(&output, &["No such file or directory", "Permission denied"])
}

fn unlabelled() -> Result<()> {
    let scene = Scene::new()?;
    scene
        .vm
        .script("for i in $(seq 20); do /bin/true; done; bash -c '/usr/bin/id'")?;
    check!(scene.request_count()? == 0, "somebody was asked: {:?}", scene.seen());
    Ok(())
}

fn signal_while_held() -> Result<()> {
    let scene = Scene::new()?;
    // One thread is held in execve; a handler of the same process must still run, by another thread or by this one.
    // By ctypes, which lets go of the interpreter's lock; os.execv does not. The main thread looks again and again: it alone runs
    // handlers of Python, but the kernel may give the signal to the other one.
    let program = "import ctypes, signal, sys, threading, time\n\
        signal.signal(signal.SIGUSR1, lambda *_: (sys.stdout.write('handled\\n'), sys.stdout.flush()))\n\
        argv = (ctypes.c_char_p * 4)(b'echo', b'went', b'on', None)\n\
        threading.Thread(target=lambda: ctypes.CDLL(None).execv(b'/bin/echo', argv)).start()\n\
        sys.stdout.write('up\\n'); sys.stdout.flush()\n\
        while True: time.sleep(0.1)\n";
    scene.vm.write(program.as_bytes(), "/root/held.py", 0o644)?;
    let mut running = scene.start_labelled(CODER, &["/usr/bin/python3", "/root/held.py"])?;
    scene.approve_next(CODER, "held.py")?;
    until_line(&mut running, "up")?;
    let request = scene.held(CODER, "went on")?;
    let pid = request.statement["predicate"]["workload"]["pid"]
        .as_u64()
        .context("no pid in the record")?;
    scene.vm.script(&format!("kill -USR1 {pid}"))?;
    until_line(&mut running, "handled")?;
    check!(scene.request(&request.id)?.pending(), "the signal answered the request");
    scene.approve(&request)?;
    until_line(&mut running, "went on")?;
    expect_status(&end(running)?, 0)
}
