# shellcheck shell=bash
# Further programs of ci/programs, which sources this: a function `try_NAME` for each. It uses ci/programs'
# server, client, listens, need and went_over_the_san, and its $san, $at, $out, $part and $route.
: "${san:?}" "${at:?}"

try_redis_more() {
    need redis-server redis-cli redis-benchmark
    server redis-server --port 7143 --bind "$at" --save '' --protected-mode no --dir "$PWD" --dbfilename one.rdb
    listens 7143
    server redis-server --port 7144 --bind "$at" --save '' --protected-mode no --replicaof "$at" 7143 --dir "$PWD" --dbfilename two.rdb
    listens 7144
    client redis-cli -h "$at" -p 7144 subscribe news >news &
    local subscriber=$!
    for _ in $(seq 100); do
        [ "$(client redis-cli -h "$at" -p 7143 pubsub numsub news | tail -n 1)" = 1 ] && break
        sleep 0.1
    done
    client redis-benchmark -h "$at" -p 7143 -c 20 -n 30000 -r 10000 -d 100 -t set -q >benchmark &
    local benchmark=$!
    sleep 1
    [ "$(client redis-cli -h "$at" -p 7143 bgsave)" = 'Background saving started' ]
    for turn in $(seq 20); do client redis-cli -h "$at" -p 7143 publish news "number $turn" >/dev/null; done
    wait "$benchmark"
    [ "$(client redis-cli -h "$at" -p 7143 wait 1 10000)" = 1 ]
    for _ in $(seq 100); do
        [ "$(client redis-cli -h "$at" -p 7143 lastsave)" = 0 ] || ! client redis-cli -h "$at" -p 7143 info persistence | grep -q 'bgsave_in_progress:1' && break
        sleep 0.1
    done
    client redis-cli -h "$at" -p 7143 info persistence | grep 'last_bgsave_status:ok'
    [ "$(client redis-cli -h "$at" -p 7143 dbsize)" = "$(client redis-cli -h "$at" -p 7144 dbsize)" ]
    client redis-cli -h "$at" -p 7143 --scan | sort >keys
    client redis-cli -h "$at" -p 7144 --scan | sort | cmp - keys
    [ "$(wc -l <keys)" -gt 1000 ]
    sleep 0.5
    kill "$subscriber" 2>/dev/null || true
    [ "$(grep -c '^number ' news)" = 20 ]
    stop_servers
    went_over_the_san 400000
}

# https, and a reload while clients are at work.
try_nginx_more() {
    need nginx wrk curl openssl
    openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=here 2>/dev/null
    nginx_with 7145 "user $(id -un); worker_processes 2;" " ssl; ssl_certificate $PWD/cert.pem; ssl_certificate_key $PWD/key.pem"
    client curl -sSk -o got "https://$at:7145/file"
    cmp got "$out/file"
    in_the_middle
    client wrk -t1 -c20 -d"$(lasting 4)"s --timeout 60s "https://$at:7145/small" >wrk &
    local wrk=$!
    sleep 1
    kill -HUP "$(cat nginx.pid)"
    sleep 1
    client curl -sSk -o got "https://$at:7145/file"
    cmp got "$out/file"
    wait "$wrk"
    # A worker that ends closes idle connections, as over TCP; nothing is answered wrongly. With the direct route
    # one worker has the companions, and that one ends.
    if grep -q 'Non-2xx' wrk; then cat wrk && return 1; fi
    went_over_the_san 400000 1000
}

try_lighttpd() {
    need lighttpd wrk curl
    head -c 1000 "$out/file" >"$out/small"
    printf 'server.document-root = "%s"\nserver.port = 7146\nserver.bind = "%s"\nserver.max-worker = 2\nserver.max-keep-alive-requests = 100000\nserver.errorlog = "%s/errors"\n' "$out" "$at" "$PWD" >lighttpd.conf
    server lighttpd -D -f "$PWD/lighttpd.conf"
    listens 7146
    fetch_from_nginx 7146
    went_over_the_san $((400000 / part)) 1000
}

# A client is two processes that use one connection, which stays on TCP therefore.
try_rsync() {
    need rsync
    mkdir -p from to
    for number in $(seq 200); do head -c 20000 /dev/urandom >"from/$number"; done
    printf 'use chroot = no\nuid = %s\ngid = %s\n[from]\npath = %s/from\n[to]\npath = %s/to\nread only = no\n' "$(id -u)" "$(id -g)" "$PWD" "$PWD" >rsyncd.conf
    server rsync --daemon --no-detach --config="$PWD/rsyncd.conf" --port=7147 --address="$at"
    listens 7147
    client rsync -r --bwlimit=4m "rsync://$at:7147/from/" here/
    diff -r from here
    client rsync -r --bwlimit=4m here/ "rsync://$at:7147/to/"
    diff -r from to
    echo "over TCP, and it works"
}

try_node() {
    need node
    cat >serve.js <<'J'
require('http').createServer((request, response) => request.pipe(response)).listen(7148, process.argv[2]);
J
    cat >ask.js <<'J'
const http = require('http'), agent = new http.Agent({keepAlive: true, maxSockets: 4});
const body = Buffer.alloc(50000, 'abcdefghij');
const one = () => new Promise((done, fail) => {
    const request = http.request({host: process.argv[2], port: 7148, method: 'POST', agent}, answer => {
        const parts = [];
        answer.on('data', part => parts.push(part)).on('end', () =>
            Buffer.concat(parts).equals(body) ? done() : fail(new Error('another answer')));
    });
    request.on('error', fail);
    request.end(body);
});
(async () => {
    for (let turn = 0; turn < 50; turn++) {
        await Promise.all([one(), one(), one(), one()]);
        await new Promise(done => setTimeout(done, 1000 * process.argv[3]));
    }
    agent.destroy();
})().catch(error => { console.error(error); process.exit(1); });
J
    server node serve.js "$at"
    listens 7148
    in_the_middle
    client node ask.js "$at" "$(between 50)"
    went_over_the_san 4000000
}

# NIO: a selector, and blocking channels.
try_java() {
    need java
    java -version 2>&1 | head -n 1
    cat >Echo.java <<'J'
import java.net.*;
import java.nio.ByteBuffer;
import java.nio.channels.*;
public class Echo {
    static void serve(InetSocketAddress at) throws Exception {
        Selector selector = Selector.open();
        ServerSocketChannel listener = ServerSocketChannel.open().bind(at);
        listener.configureBlocking(false);
        listener.register(selector, SelectionKey.OP_ACCEPT);
        ByteBuffer buffer = ByteBuffer.allocateDirect(65536);
        while (true) {
            selector.select();
            for (var keys = selector.selectedKeys().iterator(); keys.hasNext(); ) {
                SelectionKey key = keys.next();
                keys.remove();
                if (key.isAcceptable()) {
                    SocketChannel came = listener.accept();
                    came.configureBlocking(false);
                    came.register(selector, SelectionKey.OP_READ);
                    continue;
                }
                SocketChannel channel = (SocketChannel) key.channel();
                buffer.clear();
                if (channel.read(buffer) < 0) { channel.close(); continue; }
                buffer.flip();
                while (buffer.hasRemaining()) channel.write(buffer);
            }
        }
    }
    public static void main(String[] words) throws Exception {
        InetSocketAddress at = new InetSocketAddress(words[1], 7149);
        if (words[0].equals("serve")) serve(at);
        Thread[] threads = new Thread[4];
        int[] right = new int[threads.length];
        for (int number = 0; number < threads.length; number++) {
            int me = number;
            threads[me] = new Thread(() -> {
                try (SocketChannel channel = SocketChannel.open(at)) {
                    for (int turn = 0; turn < 200; turn++) {
                        ByteBuffer asked = ByteBuffer.allocate(5000), answer = ByteBuffer.allocate(5000);
                        while (asked.hasRemaining()) asked.put((byte) (me * 7 + turn + asked.position()));
                        asked.flip();
                        while (asked.hasRemaining()) channel.write(asked);
                        while (answer.hasRemaining() && channel.read(answer) >= 0) { }
                        if (java.util.Arrays.equals(asked.array(), answer.array())) right[me]++;
                        Thread.sleep((long) (1000 * Double.parseDouble(words[2])));
                    }
                } catch (Exception error) { error.printStackTrace(); }
            });
            threads[me].start();
        }
        for (Thread thread : threads) thread.join();
        for (int each : right) if (each != 200) System.exit(1);
    }
}
J
    server java -Xmx64m Echo.java serve "$at"
    listens 7149
    in_the_middle
    client java -Xmx64m Echo.java ask "$at" "$(between 200)"
    went_over_the_san 1000000
}

# The server executes itself for each connection, so those stay on TCP.
try_sshd() {
    local sshd=/usr/sbin/sshd
    [ -x "$sshd" ] && command -v scp >/dev/null || { echo "sshd cannot be had here" && return 77; }
    [ "$route" = upgrade ] || { echo "sshd forks: --route upgrade" && return 77; }
    ssh-keygen -q -t ed25519 -N '' -f host && ssh-keygen -q -t ed25519 -N '' -f user
    cp user.pub allowed
    mkdir -p /run/sshd 2>/dev/null || true
    cat >sshd_config <<C
ListenAddress $at
Port 7150
HostKey $PWD/host
AuthorizedKeysFile $PWD/allowed
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
Subsystem sftp /usr/lib/openssh/sftp-server
C
    server "$sshd" -D -e -f "$PWD/sshd_config"
    listens 7150
    local how=(-i "$PWD/user" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o IdentitiesOnly=yes)
    client scp -q "${how[@]}" -P 7150 "$out/file" "$(id -un)@$at:$PWD/there"
    cmp there "$out/file"
    client scp -q "${how[@]}" -P 7150 "$(id -un)@$at:$PWD/there" back
    cmp back "$out/file"
    [ "$(client ssh "${how[@]}" -p 7150 "$(id -un)@$at" echo here)" = here ]
    echo "over TCP, and it works"
}

try_sockperf() {
    need sockperf
    server sockperf server --tcp -i "$at" -p 7151
    listens 7151
    in_the_middle
    client sockperf ping-pong --tcp -i "$at" -p 7151 -t "$(lasting 2)" >ping-pong
    client sockperf throughput --tcp -i "$at" -p 7151 -t "$(lasting 2)" -m 1000 >throughput
    grep 'Valid Duration' ping-pong
    went_over_the_san 100000
}

try_qperf() {
    need qperf
    [ "$route" = upgrade ] || { echo "qperf forks: --route upgrade" && return 77; }
    server qperf -lp 7152
    listens 7152
    in_the_middle
    client qperf -lp 7152 -ip 7153 -t "$(lasting 2)" "$at" tcp_bw tcp_lat >qperf.log
    cat qperf.log
    went_over_the_san 100000
}

try_stress_ng() {
    need stress-ng
    [ -z "$half" ] || { echo "both ends are one program" && return 77; }
    # It connects to 0.0.0.0 whatever --sock-if says.
    [ "${SAN_FABRIC:-}" = soft ] || { echo "it uses the loopback, which only the soft fabric has a device for" && return 77; }
    in_the_middle
    client stress-ng --sock 2 --sock-port 7160 --timeout "$(lasting 4)" --metrics-brief >stress 2>&1
    cat stress >>client.err
    ! grep -qi 'fail\|error' stress
    went_over_the_san 1
}

# Ten thousand connections in one epoll set, a thousand of them busy; short ones, which do not move; fork.
try_many() {
    command -v cc >/dev/null && ulimit -n 20000 2>/dev/null || { echo "needs cc, and 20,000 descriptors" && return 77; }
    cc -O2 -Wno-unused-function -D_GNU_SOURCE -pthread -o many "$top/preload/tests/programs/many.c"
    server ./many serve "$at" 7158 11000
    listens 7158
    timeout 150 "$san" run --route "$route" --report -- ./many ask "$at" 7158 10000 1000 60 2>>client.err
    client ./many short "$at" 7158 900 2>short.err
    cat short.err
    [ "$route" = direct ] || ! grep -q '^san: .*: [1-9][0-9]* connections* over the SAN' short.err
    client ./many fork "$at" 7158 100 40
    wait "${servers[@]}"
    cat server.log
    went_over_the_san 400000 10000
}

try_cancel() {
    local as=() bin data began
    start_postgres 7154
    began=$SECONDS
    # `san run` becomes the program, so this is its number.
    "$san" run --route "$route" -- "$bin/psql" -h "$at" -p 7154 -U postgres -At -c 'SELECT count(*), repeat(md5(random()::text), 3) FROM generate_series(1, 3000) AS n GROUP BY n' -c 'SELECT pg_sleep(50)' postgres >cancelled 2>&1 &
    local client=$!
    sleep 4
    kill -INT "$client"
    ! wait "$client"
    [ $((SECONDS - began)) -lt 20 ]
    grep 'canceling statement due to user request' cancelled
}

# Eight connections with answers that are compared, in place of redis-benchmark, which looks at none.
try_cut_redis() {
    need redis-server python3
    cat >ask.py <<'P'
import random, socket, sys, threading, time
end = time.monotonic() + float(sys.argv[2])
turns = []
def ask(number):
    with socket.create_connection((sys.argv[1], 7156)) as connection:
        file, own, turn = connection.makefile('rwb'), random.Random(number), 0
        while time.monotonic() < end:
            value = own.randbytes(own.randrange(1, 20000))
            file.write(b'SET key%d "%s"\r\nGET key%d\r\n' % (number, value.hex().encode(), number))
            file.flush()
            assert file.readline() == b'+OK\r\n'
            length = int(file.readline()[1:])
            assert bytes.fromhex(file.read(length + 2).strip().decode()) == value, (number, turn)
            turn += 1
            time.sleep(0.002)
        turns.append(turn)
threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(turns) == 8 and min(turns) > int(sys.argv[3]), turns
print(sum(turns), 'answers, all right')
P
    server redis-server --port 7156 --bind "$at" --save '' --protected-mode no
    listens 7156
    in_the_middle
    client python3 ask.py "$at" "$(lasting 2)" $((20 / slow)) >answers
    cat answers
    came_back
}
