//! The console's page in a real browser: headless Chromium by WebDriver, the console in a guest.

mod driver;
mod page;

use std::process::ExitCode;

fn main() -> ExitCode {
    guard_tests::main(guard_tests::BROWSER, page::cases())
}
