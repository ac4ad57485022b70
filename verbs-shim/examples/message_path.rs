//! What one message costs in this crate: 64 bytes inline, one send and one receive, over and over, to be counted under
//! callgrind.
//!
//! ```sh
//! cargo build --release -p verbs-shim --example message_path
//! ci/rxe valgrind --tool=callgrind --callgrind-out-file=OUT target/release/examples/message_path 1000
//! ```
//!
//! A run of 2,000 messages less a run of 1,000 is 1,000 messages without the set-up. What is in this program's object
//! and not in this file is the crate's (and std's that it calls). The fabric is `soft` with `SAN_FABRIC=soft`, and there
//! it includes the fabric's own work.
//!
//! One thread holds both ends, so that the counts repeat. A message is what a blocking receiver does: three polls that
//! find nothing, arming, sleeping, a poll that finds one, the claim; receives are posted again eight at a time, and
//! every seventh send is signaled.

use std::error::Error;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use verbs_shim::{
    Access, BufferPool, CmId, CompletionBatch, CompletionQueue, ConnParams, Event, EventChannel,
    Fabric, QpCaps, QueuePair, RegisteredBuffer, SendFlags, SharedReceiveQueue, Sleeper,
    SoftConfig, Verb, Woken,
};

const RECEIVES: u32 = 64;
const SIGNALED_EVERY: u32 = 7;
const POSTED_AT_ONCE: usize = 8;
const LONG: Duration = Duration::from_secs(20);

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let messages: u32 = std::env::args()
        .nth(1)
        .ok_or("how many messages?")?
        .parse()?;
    let fabric = open()?;
    let listener = Side::new(&fabric)?;
    listener
        .id
        .bind(format!("{}:0", env("SAN_TEST_ADDR_B")?).parse()?)?;
    listener.id.listen(1)?;
    let to = listener.id.local_addr().ok_or("no address")?;

    let client = Side::new(&fabric)?;
    let from = format!("{}:0", env("SAN_TEST_ADDR_A")?).parse()?;
    client.id.resolve_addr(Some(from), to, LONG)?;
    wait(&client.channel)?;
    client.id.resolve_route(LONG)?;
    wait(&client.channel)?;
    let sender = End::new(&client.id)?;
    client.id.connect(&ConnParams::default())?;
    let Event::ConnectRequest(request) = wait(&listener.channel)? else {
        return Err("no request".into());
    };
    let receiver = End::new(&request.id)?;
    request.id.accept(&ConnParams::default())?;
    wait(&client.channel)?;
    wait(&listener.channel)?;
    run(
        &mut sender.established(),
        &mut receiver.established(),
        messages,
    )
}

fn env(name: &str) -> Result<String, Failure> {
    std::env::var(name).map_err(|_| format!("{name} is not set").into())
}

fn open() -> Result<Fabric, Failure> {
    if std::env::var("SAN_FABRIC").is_ok_and(|fabric| fabric == "soft") {
        let addresses = vec![
            env("SAN_TEST_ADDR_A")?.parse()?,
            env("SAN_TEST_ADDR_B")?.parse()?,
        ];
        return Ok(Fabric::soft(&SoftConfig {
            addresses,
            ..SoftConfig::default()
        })?);
    }
    Ok(Fabric::rdma()?)
}

struct Side {
    id: CmId,
    channel: EventChannel,
}

impl Side {
    fn new(fabric: &Fabric) -> Result<Self, Failure> {
        let channel = fabric.event_channel()?;
        Ok(Self {
            id: CmId::new(&channel)?,
            channel,
        })
    }
}

fn wait(channel: &EventChannel) -> Result<Event, Failure> {
    let until = Instant::now() + LONG;
    loop {
        if let Some(event) = channel.next()? {
            return Ok(event);
        }
        if Instant::now() > until {
            return Err("no event".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct End<Q> {
    qp: Q,
    send_cq: CompletionQueue,
    recv_cq: CompletionQueue,
    srq: SharedReceiveQueue,
    sleeper: Sleeper,
    free: ArrayVec<RegisteredBuffer, POSTED_AT_ONCE>,
}

impl End<verbs_shim::PreparedQp> {
    fn new(id: &CmId) -> Result<Self, Failure> {
        let device = id.device().ok_or("no device")?;
        let pd = device.alloc_pd()?;
        let channel = device.completion_channel()?;
        let send_cq = device.create_cq(64, Some(&channel))?;
        let recv_cq = device.create_cq(RECEIVES, Some(&channel))?;
        let srq = pd.create_srq(RECEIVES)?;
        let pool = BufferPool::new(&pd, 4096, RECEIVES, Access::LOCAL_WRITE)?;
        for _ in 0..RECEIVES {
            srq.post(0, pool.take().ok_or("no buffer")?)?;
        }
        let caps = QpCaps {
            send_wr: 16,
            recv_wr: 0,
            sge: 1,
            inline: 64,
        };
        let qp = id.create_qp(&pd, caps, &send_cq, &recv_cq, Some(&srq))?;
        let other = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
        let sleeper = channel.sleeper(other)?;
        Ok(Self {
            qp,
            send_cq,
            recv_cq,
            srq,
            sleeper,
            free: ArrayVec::new(),
        })
    }

    fn established(self) -> End<QueuePair> {
        End {
            qp: self.qp.established(),
            send_cq: self.send_cq,
            recv_cq: self.recv_cq,
            srq: self.srq,
            sleeper: self.sleeper,
            free: self.free,
        }
    }
}

fn run(
    sender: &mut End<QueuePair>,
    receiver: &mut End<QueuePair>,
    messages: u32,
) -> Result<(), Failure> {
    let mut sends = CompletionBatch::new();
    let mut receives = CompletionBatch::new();
    for n in 0..messages {
        for _ in 0..3 {
            if receiver.recv_cq.poll(&mut receives)? != 0 {
                return Err("a message too many".into());
            }
        }
        receiver.recv_cq.request_notify()?;
        send(sender, n, &mut sends)?;
        receive(receiver, n, &mut receives)?;
    }
    Ok(())
}

#[inline(never)]
fn send(end: &mut End<QueuePair>, n: u32, batch: &mut CompletionBatch) -> Result<(), Failure> {
    let bytes = [n as u8; 64];
    let signaled = n % SIGNALED_EVERY == SIGNALED_EVERY - 1;
    let flags = match signaled {
        true => SendFlags::SIGNALED,
        false => SendFlags::NONE,
    };
    end.qp.post_inline(n, Verb::SendWithImm(n), &bytes, flags)?;
    if signaled {
        let until = Instant::now() + LONG;
        while end.send_cq.poll(batch)? == 0 {
            if Instant::now() > until {
                return Err("a send did not complete".into());
            }
        }
        for completion in batch.iter() {
            if end.qp.complete_send(completion) != Some(SIGNALED_EVERY) {
                return Err("places were not freed".into());
            }
        }
    }
    Ok(())
}

#[inline(never)]
fn receive(end: &mut End<QueuePair>, n: u32, batch: &mut CompletionBatch) -> Result<(), Failure> {
    match end.sleeper.sleep(Some(LONG)) {
        Woken::Announced => {}
        Woken::Failed(error) => return Err(error.into()),
        Woken::Nothing | Woken::Other => return Err("nothing woke it".into()),
    }
    if end.recv_cq.poll(batch)? != 1 {
        return Err("not one message".into());
    }
    for completion in batch.iter() {
        let buffer = end.srq.claim(completion).ok_or("a stray receive")?;
        if completion.imm() != Some(n) || buffer.len() != 64 || buffer[63] != n as u8 {
            return Err("another message".into());
        }
        end.free.push(buffer);
    }
    if end.free.is_full() {
        end.srq.post_batch(0, &mut end.free)?;
    }
    Ok(())
}
