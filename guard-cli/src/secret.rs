//! Secrets that people give: from a terminal without echo, a file or standard input; never from an argument.

use std::io::{self, IsTerminal as _, Read as _};
use std::path::Path;

use crate::args::Password;
use crate::failure::Failure;

const MOST: u64 = 16 << 10;

/// The password; with `confirm` asked twice on a terminal.
pub(crate) fn password(source: &Password, prompt: &str, confirm: bool) -> Result<String, Failure> {
    if source.password_stdin {
        return from_file(Path::new("-"));
    }
    if let Some(path) = &source.password_file {
        return from_file(path);
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::usage("no terminal to ask for the password on")
            .next("give it with --password-file FILE or --password-stdin"));
    }
    let ask =
        |prompt: String| rpassword::prompt_password(prompt).map_err(|e| Failure::unknown(format!("no password: {e}")));
    let password = ask(format!("{prompt}: "))?;
    if confirm && ask(format!("{prompt} (again): "))? != password {
        return Err(Failure::usage("the two passwords differ"));
    }
    not_empty(password, "the password")
}

/// The first line of a file, or of standard input for `-`.
pub(crate) fn from_file(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let shown = path.display();
    let read = if path == Path::new("-") {
        io::stdin().take(MOST).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|f| f.take(MOST).read_to_string(&mut text))
    };
    read.map_err(|e| Failure::usage(format!("{shown}: {e}")))?;
    let line = text.lines().next().unwrap_or_default().to_owned();
    not_empty(
        line,
        &if path == Path::new("-") {
            "standard input".to_owned()
        } else {
            shown.to_string()
        },
    )
}

fn not_empty(text: String, what: &str) -> Result<String, Failure> {
    if text.is_empty() {
        Err(Failure::usage(format!("{what} is empty")))
    } else {
        Ok(text)
    }
}
