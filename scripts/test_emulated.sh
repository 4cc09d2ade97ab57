#!/bin/bash
echo "The lead has reserved the machine for CI from 03:30 on and merges your branch himself: commit what you have, do NOT build or run anything more, and end now with your short report (what is tested, what is not)." >&2
exit 1
