//! Memory that remembers how often each byte was written: what is delivered
//! twice does not go unseen.

use std::sync::Mutex;

use soft_roce::memory::Memory;

pub struct CountedMemory(Mutex<Inner>, u64);

struct Inner {
    bytes: Vec<u8>,
    writes: Vec<u8>,
}

impl CountedMemory {
    pub fn new(bytes: Vec<u8>) -> Self {
        let len = bytes.len() as u64;
        let writes = vec![0; bytes.len()];
        Self(Mutex::new(Inner { bytes, writes }), len)
    }

    pub fn zeroed(len: usize) -> Self {
        Self::new(vec![0; len])
    }

    pub fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        self.0.lock().unwrap().bytes[at..at + len].to_vec()
    }

    /// Whether each of these bytes was written exactly `times`.
    pub fn written(&self, at: usize, len: usize, times: u8) -> bool {
        let inner = self.0.lock().unwrap();
        inner.writes[at..at + len].iter().all(|n| *n == times)
    }

    /// Forgets the writes to a range, which is used again.
    pub fn forget(&self, at: usize, len: usize) {
        self.0.lock().unwrap().writes[at..at + len].fill(0);
    }
}

impl Memory for CountedMemory {
    fn len(&self) -> u64 {
        self.1
    }

    fn read(&self, offset: u64, out: &mut [u8]) {
        let at = offset as usize;
        out.copy_from_slice(&self.0.lock().unwrap().bytes[at..at + out.len()]);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut inner = self.0.lock().unwrap();
        let range = offset as usize..offset as usize + data.len();
        inner.bytes[range.clone()].copy_from_slice(data);
        for count in &mut inner.writes[range] {
            *count = count.saturating_add(1);
        }
    }
}
