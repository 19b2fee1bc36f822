#!/bin/sh
# Ends every process that works in a directory, frozen ones too, and removes the directory.
# Usage: remove.sh <directory>
#        remove.sh --when-orphaned <directory> <ports>   waits until standard input ends, that is
#        until the process at its other end is gone in whatever way; also gives back the ports that
#        it had reserved
#
# Processes are known by their working directory, because those that Postgres forks leave the
# process group and are nobody's children once their parent has been killed.
set -u
if [ "$1" = --when-orphaned ]; then
  shift
  trap '' HUP INT TERM
  while read -r _; do :; done
fi
directory=$1

tries=0
while [ $tries -lt 200 ]; do
  found=$(find /proc -maxdepth 2 -path '/proc/[0-9]*/cwd' \( -lname "$directory" -o -lname "$directory/*" \) 2>/dev/null)
  [ -n "$found" ] || break
  for link in $found; do
    pid=${link#/proc/}
    kill -KILL "${pid%/cwd}" 2>/dev/null
  done
  tries=$((tries + 1))
  sleep 0.02
done

# A Postgres that was killed leaves a segment of shared memory; its number is at the end of line 7.
find "$directory" -name postmaster.pid 2>/dev/null | while read -r file; do
  segment=$(sed -n 7p "$file" | awk '{ print $2 }')
  [ -n "$segment" ] && ipcrm -m "$segment" 2>/dev/null
done

awk -v below="$directory/" 'index($2, below) == 1 { print $2 }' /proc/mounts | while read -r disk; do
  # Of a process that was killed the kernel may not have closed all files yet.
  umount "$disk" 2>/dev/null || umount --lazy "$disk" 2>/dev/null
done

if [ $# -gt 1 ]; then
  find "$2" -lname "$directory" -delete 2>/dev/null
  rmdir "$2" 2>/dev/null
fi
rm -rf "$directory"
[ ! -e "$directory" ]
