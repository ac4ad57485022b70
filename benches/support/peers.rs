//! What the programs that are measured beside ours print: perftest's `ib_send_lat` and its programs
//! for bandwidth, and `rstream` of librdmacm's utilities.

use crate::Result;

/// What `ib_send_lat` found, one way, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SendLatency {
    /// The size of the message.
    pub bytes: u32,
    /// The smallest.
    pub min: f64,
    /// What perftest calls typical: the median.
    pub typical: f64,
    /// Arithmetic mean.
    pub average: f64,
}

/// What `rstream` found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stream {
    /// Microseconds for each transfer, one way.
    pub micros_per_transfer: f64,
    /// Megabytes a second.
    pub megabytes_per_second: f64,
}

/// Reads the output of `ib_send_lat`.
///
/// # Errors
/// When there is no line of results.
pub fn parse_send_latency(output: &str) -> Result<SendLatency> {
    let mut lines = output
        .lines()
        .skip_while(|line| !line.contains("t_typical"));
    let heads = lines.next().ok_or("no table of results")?;
    let row = lines.next().ok_or("no line of results")?;
    let column = |name: &str| -> Result<f64> {
        // "99% percentile" is two words, and comes after all that is read here.
        let at = heads
            .split_whitespace()
            .position(|head| head.starts_with(name));
        let at = at.ok_or_else(|| format!("no column {name}"))?;
        let cell = row.split_whitespace().nth(at);
        Ok(cell
            .ok_or_else(|| format!("no value for {name}"))?
            .parse()?)
    };
    Ok(SendLatency {
        bytes: column("#bytes")? as u32,
        min: column("t_min")?,
        typical: column("t_typical")?,
        average: column("t_avg")?,
    })
}

/// Reads the average of what `ib_send_bw`, `ib_read_bw` or `ib_write_bw` printed for `size` bytes:
/// what perftest calls MB/sec, which are mebibytes.
///
/// # Errors
/// When there is no line of results for this size.
pub fn parse_bandwidth(output: &str, size: usize) -> Result<f64> {
    let row = output
        .lines()
        .skip_while(|line| !line.contains("BW average"))
        .nth(1)
        .ok_or("no line of results")?;
    let cells: Vec<&str> = row.split_whitespace().collect();
    let &[bytes, _iterations, _peak, average, ..] = cells.as_slice() else {
        return Err("a value is missing".into());
    };
    if bytes.parse::<usize>()? != size {
        return Err(format!("it measured {bytes} bytes").into());
    }
    Ok(average.parse()?)
}

/// Reads the output of `rstream` with one size.
///
/// # Errors
/// When there is no line of results.
pub fn parse_rstream(output: &str) -> Result<Stream> {
    let row = output
        .lines()
        .skip_while(|line| !line.contains("usec/xfer"))
        .nth(1)
        .ok_or("no line of results")?;
    let mut cells = row.split_whitespace().rev();
    let mut cell = || -> Result<f64> { Ok(cells.next().ok_or("a value is missing")?.parse()?) };
    let (micros_per_transfer, gigabits) = (cell()?, cell()?);
    Ok(Stream {
        micros_per_transfer,
        megabytes_per_second: gigabits * 125.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn send_latency_of_perftest_4_5() {
        let output = "\
---------------------------------------------------------------------------------------
 GID: 00:00:00:00:00:00:00:00:00:00:255:255:10:00:07:01
---------------------------------------------------------------------------------------
 #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    t_stdev[usec]   99% percentile[usec]   99.9% percentile[usec] 
 64      1000          68.43          80.71        70.58    \t       70.36       \t0.93   \t\t76.14   \t\t80.71  
---------------------------------------------------------------------------------------
";
        let latency = parse_send_latency(output).unwrap();
        let expected = SendLatency {
            bytes: 64,
            min: 68.43,
            typical: 70.58,
            average: 70.36,
        };
        assert_eq!(latency, expected);
        assert!(parse_send_latency("Couldn't connect to 10.0.7.1:18515").is_err());
    }

    #[test]
    fn bandwidth_of_perftest_4_5() {
        let output = "\
 #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]
 4096       1000             46.22              46.12  \t\t   0.011807
";
        assert_eq!(parse_bandwidth(output, 4096).unwrap(), 46.12);
        assert!(parse_bandwidth(output, 64).is_err());
        assert!(parse_bandwidth("Events feature not available on WRITE verb", 64).is_err());
    }

    #[test]
    fn rstream_of_rdma_core_44() {
        let output = "\
name      bytes   xfers   iters   total       time     Gb/sec    usec/xfer
custom    64      1       1k      125k        0.07s      0.02      32.60
";
        assert_eq!(parse_rstream(output).unwrap().micros_per_transfer, 32.6);
        assert!(parse_rstream("rconnect: Connection refused").is_err());
        assert!(parse_rstream("name bytes xfers iters total time Gb/sec usec/xfer\n").is_err());
    }
}
