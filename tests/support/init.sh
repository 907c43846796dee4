#!/bin/busybox sh
# Process 1 of a guest: prepares it, then runs what the test says, a line at a time, and answers with its status.
# What commands print goes to the console, which the test shows when it fails.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*.ko; do
    insmod "$module" || echo "cannot insert $module"
done
. /etc/functions.sh

exec 3<>/dev/ttyS1
stty -F /dev/ttyS1 raw -echo
echo ready >&3
while read -r line <&3; do
    eval "$line" </dev/null 3<&-
    echo "$?" >&3
done
