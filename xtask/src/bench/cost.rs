//! What Guard costs operations, in instructions: those that no label covers, and execs that the policy allows.
//! Given a guest whose clock counts instructions. Never compares figures of different guests.

use std::fmt::Write;

use anyhow::{Context, Result};

use super::document::Section;
use super::stats::{Values, difference, grouped, ratio};
use super::{BenchOptions, INSTALL, LABEL, POLICY, Programs};
use crate::run;
use crate::stage::Stage;

/// What is measured: the micro-benchmark's name, in words, operations of one block.
const OPERATIONS: [(&str, &str, u32); 5] = [
    ("exec", "vfork + exec + exit + wait, static binary", 20),
    ("fork", "fork + exit + wait", 20),
    ("open", "open + close", 100),
    ("udp", "connect of a UDP socket", 100),
    ("null", "getppid, which no hook looks at", 500),
];

/// Where the operation `udp` stands in [`OPERATIONS`].
const UDP: usize = 3;

/// Ends Guard in the guest as an administrator would who takes it off: programs and maps go with their pins.
const REMOVE: &str = "set -e
systemctl stop guard-agent
rm -rf /sys/fs/bpf/guard
sleep 10";

/// Those that tasks under a label do, too.
const UNDER_A_LABEL: [usize; 3] = [0, 2, UDP];

/// Empty programs at the hooks of Guard's that the operations pass; `udp` passes `socket_connect` alone.
const EMPTY: &str = "set -e
systemd-run --quiet --unit=bench-empty -p StandardOutput=file:/run/bench-empty python3 /mnt/copy/empty.py socket_connect \
file_open file_permission inode_permission mmap_file task_alloc task_free bprm_creds_for_exec bprm_check_security \
bprm_committed_creds
until grep -q attached /run/bench-empty; do sleep 1; done
sleep 10";

/// From here on the kernel answers by itself what the agent has allowed once.
const EXACT: &str = "set -e
sed -i 's/kernel_rules = false/kernel_rules = true/' /etc/guard/agent.toml
systemctl restart guard-agent
sleep 10";

const START: &str = "set -e
systemctl start guard-agent
sleep 10";

pub(super) fn measure(options: &BenchOptions, programs: &Programs) -> Result<Section> {
    run::progress("counting instructions in a guest of its own (some minutes)");
    let stage = Stage::boot(|guest| {
        guest.icount = true;
        guest.copy = programs.copies();
    })?;
    stage.vm.script(INSTALL)?;
    stage.set_policy(POLICY.as_bytes())?;
    let blocks = if options.quick { 5 } else { 21 };
    let measure = |what: &str, labelled: bool| -> Result<Vec<Values>> {
        run::progress(format!("counting: {what}"));
        let all: Vec<usize> = (0..OPERATIONS.len()).collect();
        let operations = if labelled { &UNDER_A_LABEL[..] } else { &all[..] };
        operations
            .iter()
            .map(|at| values(&stage, &OPERATIONS[*at], blocks, labelled))
            .collect()
    };
    stage.vm.script(REMOVE)?;
    let without = measure("no Guard", false)?;
    stage.vm.script(EMPTY)?;
    let empty = measure("empty programs at the same hooks", false)?;
    stage.vm.script("systemctl stop bench-empty")?;
    stage.vm.script(START)?;
    let unlabelled = measure("Guard, nothing labelled", false)?;
    let neighbour = stage.start_labelled(LABEL, &["/usr/bin/sleep", "infinity"])?;
    stage.vm.sh("sleep 10")?;
    let beside = measure("Guard, beside a labelled workload", false)?;
    let labelled = measure("Guard, labelled and allowed by the agent", true)?;
    stage.vm.script(EXACT)?;
    let exact = measure("Guard, labelled and allowed in the kernel", true)?;
    let links = stage.vm.sh("ls /sys/fs/bpf/guard/*/links | wc -l")?.text();
    drop(neighbour);
    stage.vm.script("pkill -x sleep")?;
    stage.vm.script(REMOVE)?;
    let again = measure("no Guard, again", false)?;
    let kernel = stage.vm.sh("uname -r")?.text();
    Figures {
        kernel,
        links,
        blocks,
        profile: programs.profile_words(),
        without,
        empty,
        unlabelled,
        beside,
        labelled,
        exact,
        again,
    }
    .section()
}

fn values(stage: &Stage, (name, _, count): &(&str, &str, u32), blocks: u32, labelled: bool) -> Result<Values> {
    let (blocks, count) = (blocks.to_string(), count.to_string());
    let argv = ["/run/bench/fast", name, &blocks, &count];
    let output = if labelled {
        stage.start_labelled(LABEL, &argv)?.wait()?
    } else {
        stage.vm.run(&argv)?
    };
    let output = output
        .success()
        .with_context(|| format!("the micro-benchmark {name} failed"))?;
    Values::parse(&output.text())
}

struct Figures {
    kernel: String,
    links: String,
    blocks: u32,
    profile: &'static str,
    without: Vec<Values>,
    empty: Vec<Values>,
    unlabelled: Vec<Values>,
    beside: Vec<Values>,
    labelled: Vec<Values>,
    exact: Vec<Values>,
    again: Vec<Values>,
}

impl Figures {
    /// Whichever of the two is larger: what is left is Guard's for certain.
    fn plain(&self, at: usize) -> u64 {
        self.without[at].median().max(self.again[at].median())
    }

    fn section(&self) -> Result<Section> {
        let allowed = self
            .labelled
            .first()
            .context("the labelled exec was not measured")?
            .median();
        let mut body = format!(
            "Kernel {}, {} BPF programs attached. Guest with one CPU whose clock counts instructions (QEMU `-accel \
             tcg,thread=single -icount shift=0,sleep=off`), settled for ten seconds before each column; medians of {} blocks. \
             \"No Guard\" is measured before and after in the same guest, programs and maps removed; the larger one counts. \
             Nothing in the first table is labelled: first nothing on the host is, then a labelled process sleeps beside it. \
             Command: `cargo xtask bench`.\n\n\
             | instructions per operation | no Guard | again | Guard | more | ratio | beside a workload | more | ratio |\n\
             | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
            self.kernel, self.links, self.blocks,
        );
        for (at, (_, words, _)) in OPERATIONS.iter().enumerate() {
            let plain = self.plain(at);
            let _ = write!(
                body,
                "| {words} | {} | {} |",
                grouped(self.without[at].median()),
                grouped(self.again[at].median()),
            );
            for with in [self.unlabelled[at].median(), self.beside[at].median()] {
                let _ = write!(
                    body,
                    " {} | {} | {} |",
                    grouped(with),
                    difference(with, plain),
                    ratio(with, plain)
                );
            }
            body.push('\n');
        }
        let empty = self.empty[UDP].median();
        let _ = write!(
            body,
            "\nPer hook call: the connect passes one hook of Guard's, `socket_connect`. With an empty BPF program there, and no Guard, \
             it takes {} instructions. Guard's program adds {} to that for a task that is not labelled, {} beside a labelled workload; \
             the aim is 60 at most. Every gated hook begins with the same question.\n",
            grouped(empty),
            difference(self.unlabelled[UDP].median(), empty),
            difference(self.beside[UDP].median(), empty),
        );
        let plain = self.plain(0);
        let _ = write!(
            body,
            "\nA labelled exec that the policy allows in user space, the agent's work on it included ({}): {} instructions, {} \
             to the plain exec ({} times).",
            self.profile,
            grouped(allowed),
            difference(allowed, plain),
            ratio(allowed, plain),
        );
        let _ = write!(
            body,
            "\n\nUnder a label. In the kernel: an exact rule allows the exec, the socket may reach the address already, and the file is \
             opened by nobody's leave. The hooks of all protections run, too. Next to empty programs at the same hooks:\n\n\
             | instructions per operation | empty programs | allowed in the kernel | more | allowed by the agent |\n\
             | --- | ---: | ---: | ---: | ---: |\n"
        );
        for (row, at) in UNDER_A_LABEL.into_iter().enumerate() {
            let (empty, exact) = (self.empty[at].median(), self.exact[row].median());
            let _ = writeln!(
                body,
                "| {} | {} | {} | {} | {} |",
                OPERATIONS[at].1,
                grouped(empty),
                grouped(exact),
                difference(exact, empty),
                grouped(self.labelled[row].median()),
            );
        }
        let _ = write!(
            body,
            "\nThe connect passes one hook, `socket_connect`, so its row is the cost of one hook call; the aim is 400 at most."
        );
        Ok(Section::new("What is not labelled", &body))
    }
}
