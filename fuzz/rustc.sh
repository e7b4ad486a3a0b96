#!/bin/sh
# RUSTC_WRAPPER of the daemons' targets: the coverage pass for Guard's own crates only, so that the dependencies are
# those that the ordinary build has compiled already. GUARD_FUZZ_FLAGS is set by `cargo xtask fuzz`.
case " $* " in
*" --crate-name guard_"*) exec "$@" $GUARD_FUZZ_FLAGS ;;
*) exec "$@" ;;
esac
