"""What cannot be taken back in a running kernel: the last cases of a run."""
from harness import *

@case
def nobody_may_trace(probe):
    """kernel.yama.ptrace_scope 3. What the kernel key alone decides works; what has to be read is refused, not kept for ever."""
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope", "w") as file:
            file.write("3")
    except FileNotFoundError:
        raise Skipped("Yama is not active")
    mark = marker("y1")
    output(start_moved(program("fast-allow-yama"), mark))
    check(os.path.exists(mark), f"what needs no reading did not run\n{probe.since()}")
    mark = marker("y2")
    process = start_moved(program("hold-second-yama"), mark)
    text = output(process)
    check(not os.path.exists(mark), "it ran although nobody saw what it is")
    check("not permitted" in text, f"{text}\n{probe.since()}")
