//! `rping`: the client offers a buffer, the server READs it, the client offers
//! another, the server WRITEs the data back, the client compares.

use soft_roce::memory::Memory;
use soft_roce::rc::{Remote, SendOp, WorkKind};

use crate::Job;
use crate::common::{How, Node, Result, Side};

/// Messages are 16 bytes: address, key, length.
const INFO: usize = 16;
const INBOX: usize = 0;
const OUTBOX: usize = 64;
const START: usize = 4096;

fn layout(job: &Job) -> usize {
    START + 2 * job.size
}

fn inbox(side: &Side) -> Result<()> {
    side.receive(0, INBOX, INFO)
}

/// Waits for the peer's message; completed sends pass by.
fn await_message(side: &Side) -> Result<(Remote, usize)> {
    while side.next(How::Wait)?.kind != WorkKind::Receive {}
    let mut info = [0; INFO];
    side.memory.read(INBOX as u64, &mut info);
    inbox(side)?;
    let [va @ .., _, _, _, _, _, _, _, _] = info;
    let rkey = u32::from_be_bytes(info[8..12].try_into()?);
    let len = u32::from_be_bytes(info[12..].try_into()?);
    Ok((
        Remote {
            va: u64::from_be_bytes(va),
            rkey,
        },
        len as usize,
    ))
}

fn message(side: &Side, offset: usize, len: usize) -> Result<()> {
    let mut info = Vec::with_capacity(INFO);
    info.extend((side.mr.va() + offset as u64).to_be_bytes());
    info.extend(side.mr.rkey().to_be_bytes());
    info.extend((len as u32).to_be_bytes());
    side.memory.write(OUTBOX as u64, &info);
    side.send(1, SendOp::Send, (OUTBOX, INFO), false)
}

fn rdma(side: &Side, op: SendOp, len: usize) -> Result<()> {
    side.send(2, op, (START, len), true)?;
    while side.next(How::Wait)?.wr_id != 2 {}
    Ok(())
}

pub(crate) fn server(node: &Node, job: &Job) -> Result<()> {
    let _listener = node.listen(job.addr)?;
    let side = node.accept(layout(job), inbox)?;
    for _ in 0..job.count {
        let (remote, len) = await_message(&side)?;
        rdma(&side, SendOp::Read(remote), len)?;
        let mut data = vec![0; len];
        side.memory.read(START as u64, &mut data);
        message(&side, START, len)?;
        let (remote, _) = await_message(&side)?;
        let text = data
            .iter()
            .position(|byte| *byte == 0)
            .ok_or("ping without an end")?
            + 1;
        if !data.starts_with(b"rdma-ping-") {
            return Err("ping of another kind".into());
        }
        rdma(&side, SendOp::Write(remote), text)?;
        message(&side, START, len)?;
    }
    node.expect("Disconnected")?;
    Ok(())
}

pub(crate) fn client(node: &Node, job: &Job) -> Result<()> {
    let side = node.connect(job.addr, layout(job), inbox)?;
    let sink = START + job.size;
    for ping in 0..job.count {
        let mut data: Vec<u8> = format!("rdma-ping-{ping}: ").into_bytes();
        data.extend((0..job.size).map(|i| b'A' + ((i + ping) % 58) as u8));
        data.truncate(job.size);
        if let Some(last) = data.last_mut() {
            *last = 0;
        }
        side.memory.write(START as u64, &data);
        message(&side, START, job.size)?;
        await_message(&side)?;
        message(&side, sink, job.size)?;
        await_message(&side)?;
        let mut back = vec![0; job.size];
        side.memory.read(sink as u64, &mut back);
        if back != data {
            return Err(format!("ping {ping} came back changed").into());
        }
    }
    side.id.as_ref().ok_or("no id")?.disconnect()?;
    node.expect("Disconnected")?;
    Ok(())
}
