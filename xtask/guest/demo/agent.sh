#!/bin/bash
# What an agent that works on its own might do in one go. Apart from the five steps it uses the shell's own commands only.
cd /srv/app || exit 1

step() {
    printf 'step %s begins\n' "$1"
    "${@:2}"
    printf 'step %s exit %s\n' "$1" "$?"
}

step 1 ls -l
step 2 git tag release-7
step 3 ./migrate
step 4 git push --force origin main
step 5 ./tidy /run/demo/go /run/demo/changed build data. /usr/bin/rm -r
printf 'agent done\n'
