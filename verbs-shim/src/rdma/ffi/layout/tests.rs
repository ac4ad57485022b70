use std::collections::BTreeSet;

/// What a C compiler makes of the headers, against what this crate declares.
#[test]
#[cfg(target_arch = "x86_64")]
fn the_declarations_are_those_of_the_headers() {
    let theirs: BTreeSet<String> = include_str!("x86_64.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    let fields = super::fields().into_iter().map(|f| {
        let field = if f.field.is_empty() { "-" } else { f.field };
        format!("F {} {field} {} {}", f.structure, f.offset, f.size)
    });
    let constants = super::constants()
        .into_iter()
        .map(|(name, value)| format!("C {name} {value}"));
    let ours: BTreeSet<String> = fields.chain(constants).collect();
    assert_eq!(
        ours.difference(&theirs).collect::<Vec<_>>(),
        Vec::<&String>::new()
    );
    assert_eq!(
        theirs.difference(&ours).collect::<Vec<_>>(),
        Vec::<&String>::new()
    );
    assert!(ours.len() > 300);
}

/// The immediate data lies right before the union with the remote address, unnamed in C.
#[test]
fn unnamed_unions_lie_where_the_headers_put_them() {
    use crate::rdma::ffi::types::{ibv_send_wr, ibv_send_wr_bind_mw, ibv_wc};
    use std::mem::offset_of;
    assert_eq!(
        offset_of!(ibv_send_wr, imm_data) + 4,
        offset_of!(ibv_send_wr, wr)
    );
    assert_eq!(offset_of!(ibv_send_wr, bind_mw), 80);
    assert_eq!(offset_of!(ibv_send_wr_bind_mw, bind_info), 16);
    assert_eq!(size_of::<ibv_send_wr_bind_mw>(), 48);
    assert_eq!(offset_of!(ibv_wc, imm_data) + 4, offset_of!(ibv_wc, qp_num));
}
