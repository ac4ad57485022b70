//! `ucmatose`: connections, then messages from the server on each, then as many
//! back, then the server disconnects.

use soft_roce::rc::{SendOp, WorkKind};

use crate::Job;
use crate::common::{How, Node, Result, Side};

fn inbox(job: &Job) -> impl Fn(&Side) -> Result<()> + '_ {
    |side| (0..job.count).try_for_each(|n| side.receive(n as u64, 0, job.size))
}

fn receive_all(side: &Side, job: &Job) -> Result<()> {
    let mut left = job.count;
    while left > 0 {
        let done = side.next(How::Wait)?;
        if done.kind == WorkKind::Receive {
            if done.byte_len as usize != job.size {
                return Err(format!("{} bytes received", done.byte_len).into());
            }
            left -= 1;
        }
    }
    Ok(())
}

fn send_all(side: &Side, job: &Job) -> Result<()> {
    (0..job.count)
        .try_for_each(|n| side.send(n as u64, SendOp::Send, (0, job.size), n + 1 == job.count))
}

pub(crate) fn server(node: &Node, job: &Job) -> Result<()> {
    let _listener = node.listen(job.addr)?;
    let sides: Vec<Side> = (0..job.connections)
        .map(|_| node.accept(job.size, inbox(job)))
        .collect::<Result<_>>()?;
    sides.iter().try_for_each(|side| send_all(side, job))?;
    sides.iter().try_for_each(|side| receive_all(side, job))?;
    for side in &sides {
        side.id.as_ref().ok_or("no id")?.disconnect()?;
    }
    (0..job.connections).try_for_each(|_| node.expect("Disconnected").map(drop))
}

pub(crate) fn client(node: &Node, job: &Job) -> Result<()> {
    let sides: Vec<Side> = (0..job.connections)
        .map(|_| node.connect(job.addr, job.size, inbox(job)))
        .collect::<Result<_>>()?;
    sides.iter().try_for_each(|side| receive_all(side, job))?;
    sides.iter().try_for_each(|side| send_all(side, job))?;
    for _ in 0..job.connections {
        node.expect("Disconnected")?;
    }
    for side in &sides {
        side.id.as_ref().ok_or("no id")?.disconnect()?;
    }
    Ok(())
}
