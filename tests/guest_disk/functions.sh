# Sourced by the guest's process 1: what the test asks for.

# Writes numbered records in the background, each durable before the test hears of it, until `finish` or an error. It always ends
# in `finish`: when a child ends while process 1 reads a command, busybox forgets what it has read of the line.
write_on() {
    rm -f /tmp/finish
    (
        number=0
        while [ ! -e /tmp/finish ]; do
            number=$((number + 1))
            if ! printf '%04095d\n' "$number" |
                dd of=/mnt/records bs=4096 seek=$((number - 1)) iflag=fullblock conv=notrunc,fsync 2>/tmp/complaint
            then
                cat /tmp/complaint >/dev/console
                echo "failed $number" >/dev/ttyS1
                until [ -e /tmp/finish ]; do
                    usleep 10000
                done
                exit 1
            fi
            echo "written $number" >/dev/ttyS1
        done
    ) &
}

# Waits until the writer's process is in the kernel for a disk that does not answer.
held() {
    until grep -qs '(dd) D' /proc/[0-9]*/stat; do
        usleep 10000
    done
}

# Has the writer end after the record that it is at; fails if it failed.
finish() {
    touch /tmp/finish
    wait $!
}

# Fails, and shows it, if the kernel has anything to say against its disk or the file system on it.
unharmed() {
    ! dmesg | grep -Ei 'i/o error|ext4-fs (error|warning)|jbd2.*error|abort|remount|blocked for more than' >/dev/console
}
