//! A person at a terminal: signals, job control and the size of the window, while something is held.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use guard_tests::scene::{CODER, Scene, eventually};
use guard_tests::{Case, case, check};
use xtask::stage::{PATIENCE, Request};
use xtask::vm::{Event, Running};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "terminal::guard_run",
            "Ctrl-C and Ctrl-Z while guard run is held give the shell its prompt back, fg goes on, a resized window is told",
            guard_run,
        ),
        case(
            "terminal::labelled_shell",
            "in a labelled shell a held command is stopped, continued, interrupted and put into the background as any other",
            labelled_shell,
        ),
    ]
}

/// Runs its arguments on a terminal of their own; what it reads is typed, but for lines of `\0ROWS COLUMNS`, which resize it.
const TERMINAL: &str = r#"
import fcntl, os, pty, selectors, struct, sys, termios
pid, master = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
watch = selectors.DefaultSelector()
watch.register(0, selectors.EVENT_READ)
watch.register(master, selectors.EVENT_READ)
typed = b""
while True:
    for key, _ in watch.select():
        try:
            data = os.read(key.fd, 65536)
        except OSError:
            data = b""
        if not data:
            if key.fd == master:
                sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            watch.unregister(0)
        elif key.fd == master:
            os.write(1, data)
        elif data[:1] == b"\0":
            rows, columns = map(int, data[1:].split())
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        else:
            os.write(master, data)
"#;

/// A shell on a terminal. Its prompt is the status of what ran before, as `<0>`.
struct Terminal {
    running: Running,
    seen: String,
}

const CTRL_C: &str = "\x03";
const CTRL_Z: &str = "\x1a";

impl Terminal {
    fn open(scene: &Scene) -> Result<Self> {
        scene.vm.write(TERMINAL.as_bytes(), "/root/terminal.py", 0o644)?;
        scene.vm.write(
            b"PS1='<$?>'\nunset PROMPT_COMMAND\nbind 'set enable-bracketed-paste off'\n",
            "/root/rc",
            0o644,
        )?;
        let argv = [
            "/usr/bin/python3",
            "/root/terminal.py",
            "/bin/bash",
            "--noprofile",
            "--rcfile",
            "/root/rc",
            "-i",
        ];
        let env = [
            ("TERM", "dumb"),
            ("NO_COLOR", "1"),
            ("HOME", "/root"),
            ("PATH", "/usr/bin:/bin"),
        ];
        let running = scene.vm.start_with(&argv, &env, None)?;
        let mut terminal = Self {
            running,
            seen: String::new(),
        };
        terminal.expect("<0>")?;
        Ok(terminal)
    }

    fn enter(&mut self, text: &str) -> Result<()> {
        self.running.input(text.as_bytes())
    }

    /// Waits for `text` and forgets what came up to it.
    fn expect(&mut self, text: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.running.next_within(left) {
                Ok(Some(Event::Stdout(bytes) | Event::Stderr(bytes))) => {
                    self.seen.push_str(&String::from_utf8_lossy(&bytes));
                }
                Ok(Some(Event::Exit(status))) => {
                    bail!("the terminal ended ({status}) before {text:?}: {:?}", self.seen)
                }
                Ok(None) => bail!("the guest ended"),
                Err(error) => return Err(error).with_context(|| format!("{text:?} does not come: {:?}", self.seen)),
            }
        }
    }

    /// The shell has its prompt back, and reads from it: it answers.
    fn prompt(&mut self, status: i32) -> Result<()> {
        self.expect(&format!("<{status}>"))?;
        self.enter("echo at''tentive\n")?;
        self.expect("\nattentive")?;
        self.expect("<0>")
    }

    fn close(mut self) -> Result<()> {
        self.enter("exit 0\n")?;
        self.expect("exit")?;
        let output = self.running.wait_within(PATIENCE)?;
        check!(output.status == 0, "{output}");
        Ok(())
    }
}

fn ended(scene: &Scene, request: &Request, state: &str) -> Result<()> {
    let request = scene.follow(&request.id, state, |request| !request.pending())?;
    check!(request.state == state, "{request:?}");
    Ok(())
}

fn guard_run() -> Result<()> {
    let scene = Scene::new()?;
    let mut terminal = Terminal::open(&scene)?;
    // Interrupted while it is held.
    terminal.enter("guard run --label coder -- /bin/echo in''terrupted\n")?;
    let request = scene.held(CODER, "interrupted")?;
    terminal.expect("guard: held")?;
    terminal.enter(CTRL_C)?;
    terminal.prompt(130)?;
    ended(&scene, &request, "withdrawn")?;

    // Stopped while it is held, and answered only after it goes on.
    terminal.enter("guard run --label coder -- /bin/echo stop''ped\n")?;
    let request = scene.held(CODER, "echo stopped")?;
    terminal.expect("guard: held")?;
    terminal.enter(CTRL_Z)?;
    terminal.expect("Stopped")?;
    terminal.prompt(148)?;
    terminal.enter("fg\n")?;
    terminal.expect("guard run")?;
    check!(scene.request(&request.id)?.pending(), "it was asked anew");
    scene.approve(&request)?;
    terminal.expect("\nstopped\r\n")?;
    terminal.prompt(0)?;

    // Answered while it is stopped: it goes on when the person lets it.
    terminal.enter("guard run --label coder -- /bin/echo an''swered\n")?;
    let request = scene.held(CODER, "echo answered")?;
    terminal.expect("guard: held")?;
    terminal.enter(CTRL_Z)?;
    terminal.expect("Stopped")?;
    terminal.prompt(148)?;
    scene.approve(&request)?;
    terminal.enter("fg\n")?;
    terminal.expect("\nanswered\r\n")?;
    terminal.prompt(0)?;

    // A process that handles SIGCONT is stopped as a whole while it asks: what it is sent reaches it all the same.
    let program = "import os, signal\n\
        signal.signal(signal.SIGCONT, lambda *_: None)\n\
        signal.signal(signal.SIGINT, signal.SIG_DFL)\n\
        os.execv('/bin/echo', ['echo', 'parked'])\n";
    scene.vm.write(program.as_bytes(), "/root/parked.py", 0o644)?;
    for (send, status) in [(None, 130), (Some("kill -TERM"), 143)] {
        terminal.enter("guard run --label coder -- /usr/bin/python3 /root/parked.py\n")?;
        scene.approve_next(CODER, "parked.py")?;
        let request = scene.held(CODER, "echo parked")?;
        let pid = request.statement["predicate"]["workload"]["pid"]
            .as_u64()
            .context("no pid")?;
        eventually(PATIENCE, || {
            scene
                .vm
                .script(&format!("grep -q '^State:.T' /proc/{pid}/status"))
                .map(drop)
        })?;
        match send {
            None => terminal.enter(CTRL_C)?,
            Some(kill) => scene.vm.script(&format!("{kill} {pid}")).map(drop)?,
        }
        terminal.prompt(status)?;
        ended(&scene, &request, "withdrawn")?;
    }

    // The size of the window.
    let program = "import os, signal, sys\n\
        signal.signal(signal.SIGWINCH, lambda *_: (print('now', *os.get_terminal_size()), sys.exit(5)))\n\
        print('rea' 'dy')\n\
        while True: signal.pause()\n";
    scene.vm.write(program.as_bytes(), "/root/window.py", 0o644)?;
    terminal.enter("guard run --label coder -- /usr/bin/python3 /root/window.py\n")?;
    let request = scene.held(CODER, "window.py")?;
    // Resized while it is held, and again while it runs.
    terminal.enter("\x0030 90\n")?;
    scene.approve(&request)?;
    terminal.expect("\nready")?;
    terminal.enter("\x0041 101\n")?;
    terminal.expect("now 101 41")?;
    terminal.prompt(5)?;
    terminal.close()
}

fn labelled_shell() -> Result<()> {
    let scene = Scene::new()?;
    let mut terminal = Terminal::open(&scene)?;
    terminal.enter("guard run --label coder -- /bin/bash --noprofile --rcfile /root/rc -i\n")?;
    scene.approve_next(CODER, "rcfile")?;
    terminal.expect("guard: approved")?;
    terminal.prompt(0)?;

    // Ctrl-C ends what is held.
    terminal.enter("/bin/echo in''terrupted\n")?;
    let request = scene.held(CODER, "interrupted")?;
    terminal.enter(CTRL_C)?;
    terminal.prompt(130)?;
    ended(&scene, &request, "withdrawn")?;

    // Ctrl-Z, then the foreground again.
    terminal.enter("/bin/echo stop''ped\n")?;
    scene.held(CODER, "echo stopped")?;
    terminal.enter(CTRL_Z)?;
    terminal.expect("Stopped")?;
    terminal.prompt(148)?;
    terminal.enter("fg\n")?;
    terminal.expect("/bin/echo")?;
    let request = scene.held(CODER, "echo stopped").context("after fg")?;
    scene.approve(&request)?;
    terminal.expect("\nstopped\r\n")?;
    terminal.prompt(0)?;

    // In the background; the shell stays usable, and knows when it has ended.
    terminal.enter("/bin/echo back''ground &\n")?;
    let request = scene.held(CODER, "background")?;
    terminal.prompt(0)?;
    scene.approve(&request)?;
    terminal.expect("\nbackground\r\n")?;
    terminal.enter("wait; echo wai''ted $?\n")?;
    terminal.expect("waited 0")?;

    // A pipe: both ends are held at once, and the job is one.
    terminal.enter("/bin/echo pi''ped | /bin/cat\n")?;
    let left = scene.held(CODER, "echo piped")?;
    let right = scene.held(CODER, "/bin/cat")?;
    terminal.enter(CTRL_Z)?;
    terminal.expect("Stopped")?;
    terminal.prompt(148)?;
    terminal.enter("fg\n")?;
    terminal.expect("/bin/cat")?;
    let now = |before: &Request, what: &str| -> Result<Request> {
        let again = scene.request(&before.id)?;
        if again.pending() {
            Ok(again)
        } else {
            scene.held(CODER, what)
        }
    };
    scene.approve(&now(&right, "/bin/cat")?)?;
    scene.approve(&now(&left, "echo piped")?)?;
    terminal.expect("\npiped\r\n")?;
    terminal.prompt(0)?;

    // Denied is an error of the command, not of the shell.
    terminal.enter("/usr/bin/id\n")?;
    let request = scene.held(CODER, "id")?;
    scene.deny(&request, "no")?;
    terminal.expect("Operation not permitted")?;
    terminal.prompt(126)?;
    terminal.enter("exit 3\n")?;
    terminal.expect("exit")?;
    terminal.prompt(3)?;
    terminal.close()
}
