//! `ib_send_lat -R` and `ib_send_bw -R`: a first connection carries the
//! parameters, message by message and in step; a second one the test.
//!
//! What both sides say on the first is symmetric, and with `-R` nobody uses it
//! but to keep in step: as a server all is echoed, as a client messages of the
//! right lengths are sent.

use std::time::{Duration, Instant};

use soft_roce::memory::Memory;
use soft_roce::rc::{Completion, SendOp, WorkKind};

use crate::Job;
use crate::common::{How, Node, Result, Side};

/// Receives kept posted.
const DEPTH: usize = 512;
/// Sends under way: no more than the other side has receives.
const WINDOW: usize = 64;

/// Lengths of the messages until the second connection: version, buffer size,
/// cache line, MTU, keys.
const BEFORE: [usize; 5] = [16, 4, 4, 2, KEYS];
/// Keys once connected, for the test, again, for the report, before the run.
const AFTER: [usize; 5] = [KEYS; 5];
/// After the run.
const END: [usize; 1] = [KEYS];

/// `struct pingpong_dest`.
const KEYS: usize = 56;

const CONTROL: usize = 4096;
const OUTBOX: usize = 1024;

fn control_inbox(side: &Side) -> Result<()> {
    side.receive(0, 0, KEYS)
}

fn inbox(size: usize) -> impl Fn(&Side) -> Result<()> {
    move |side| (0..DEPTH).try_for_each(|n| side.receive(n as u64, 0, size))
}

/// Waits for a message on the first connection and says how long it is.
fn hear(control: &Side) -> Result<usize> {
    loop {
        let done = control.next(How::Wait)?;
        if done.kind == WorkKind::Receive {
            return Ok(done.byte_len as usize);
        }
    }
}

fn say(control: &Side, message: &[u8]) -> Result<()> {
    control.memory.write(OUTBOX as u64, message);
    control.send(1, SendOp::Send, (OUTBOX, message.len()), false)
}

fn echo(control: &Side, messages: usize) -> Result<()> {
    for _ in 0..messages {
        let len = hear(control)?;
        let mut bytes = vec![0; len];
        control.memory.read(0, &mut bytes);
        control_inbox(control)?;
        say(control, &bytes)?;
    }
    Ok(())
}

/// Says messages of these lengths, one after each answer.
fn talk(control: &Side, lengths: &[usize]) -> Result<()> {
    for len in lengths {
        let mut message = vec![0; *len];
        match len {
            16 => message[..4].copy_from_slice(b"6.00"),
            4 => message.copy_from_slice(&4096u32.to_be_bytes()),
            2 => message[0] = b'5',
            _ => {}
        }
        say(control, &message)?;
        let answer = hear(control)?;
        control_inbox(control)?;
        if answer != *len {
            return Err(format!("{answer} bytes answer {len}").into());
        }
    }
    Ok(())
}

pub(crate) fn server(node: &Node, job: &Job, lat: bool) -> Result<()> {
    let _listener = node.listen(job.addr)?;
    let control = node.accept(CONTROL, control_inbox)?;
    echo(&control, BEFORE.len())?;
    let side = node.accept(job.size, inbox(job.size))?;
    echo(&control, AFTER.len())?;
    for n in 0..job.count {
        receive_one(&side, job)?;
        if lat {
            side.send(n as u64, SendOp::Send, (0, job.size), n % 16 == 15)?;
        }
    }
    println!("{:?}", side.qp.counters());
    echo(&control, END.len())?;
    // Both connections are ended by the client.
    node.expect("Disconnected")?;
    Ok(())
}

pub(crate) fn client(node: &Node, job: &Job, lat: bool) -> Result<()> {
    let control = node.connect(job.addr, CONTROL, control_inbox)?;
    talk(&control, &BEFORE)?;
    let side = connect_again(node, job)?;
    talk(&control, &AFTER)?;
    let start = Instant::now();
    if lat {
        for n in 0..job.count {
            side.send(n as u64, SendOp::Send, (0, job.size), n % 16 == 15)?;
            receive_one(&side, job)?;
        }
        let trips = job.count as f64 * 2.0;
        println!(
            "one way {:.2} us",
            start.elapsed().as_secs_f64() * 1e6 / trips
        );
    } else {
        send_all(&side, job)?;
        let bytes = (job.count * job.size) as f64;
        println!("{:.1} MB/s", bytes / start.elapsed().as_secs_f64() / 1e6);
    }
    println!("{:?}", side.qp.counters());
    talk(&control, &END)?;
    for side in [side, control] {
        side.id.as_ref().ok_or("no id")?.disconnect()?;
        node.expect("Disconnected")?;
    }
    Ok(())
}

/// The server begins to listen again at a time of its own.
fn connect_again(node: &Node, job: &Job) -> Result<Side> {
    let mut tries = 0;
    loop {
        match node.connect(job.addr, job.size, inbox(job.size)) {
            Err(why) if tries < 50 => {
                tries += 1;
                println!("again: {why}");
                std::thread::sleep(Duration::from_millis(100));
            }
            result => return result,
        }
    }
}

fn receive_one(side: &Side, job: &Job) -> Result<()> {
    loop {
        let done = side.next(How::Wait)?;
        if done.kind == WorkKind::Receive {
            if done.byte_len as usize != job.size {
                return Err(format!("{} bytes received", done.byte_len).into());
            }
            return side.receive(done.wr_id, 0, job.size);
        }
    }
}

fn send_all(side: &Side, job: &Job) -> Result<()> {
    let (mut sent, mut done) = (0, 0);
    let mut out = [Completion::default(); 16];
    while done < job.count {
        while sent < job.count && sent < done + WINDOW {
            side.send(sent as u64, SendOp::Send, (0, job.size), true)?;
            sent += 1;
        }
        let count = side.poll(&mut out)?;
        done += count;
        if count == 0 {
            side.next(How::Wait)?;
            done += 1;
        }
    }
    Ok(())
}
