# Sourced by the guest's process 1: its network, and what the test asks for.
export AFTERIMAGE_SOCKET=/tmp/api.sock
ip link set lo up
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0

# What the test asks for comes before the gateway under load.
renice -n -10 $$

# /dev/dm-0: what is written there goes to the volume, and into the log.
log_writes() {
    echo "0 $(blockdev --getsz /dev/vda) log-writes /dev/vda /dev/vdb" | dmsetup create logged --noudevsync
}

mark() {
    dmsetup message logged 0 mark "$1"
}

start() {
    rm -f /tmp/*.sock
    : >/tmp/log
    sh -c 'renice -n 10 $$; exec afterimage serve --config /etc/afterimage.toml' 2>&1 | tee /tmp/log >/dev/console &
    until grep -q ' ready ' /tmp/log; do
        # The log's reader ends with the gateway.
        kill -0 $! || return 1
        usleep 10000
    done
}

# Sends the gateway a signal; it is gone when this returns.
end() {
    killall "-$1" afterimage && wait
}
