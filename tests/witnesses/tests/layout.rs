//! Our declarations of librdmacm and libibverbs against two witnesses: `rdma-sys`, and the headers
//! themselves as the system's C compiler reads them. Runs anywhere, without RDMA.
//!
//! Only those of our fields are compared that `verbs-shim` lists; it lists all that it reads or writes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

use verbs_shim::ffi_layout::{self, Field};

/// Anonymous enums, which `rdma-sys` leaves out. The C compiler is their witness.
const NOT_IN_RDMA_SYS: [&str; 7] = [
    "RDMA_OPTION_ID",
    "RDMA_OPTION_ID_TOS",
    "RDMA_OPTION_ID_REUSEADDR",
    "RDMA_OPTION_ID_AFONLY",
    "RDMA_OPTION_ID_ACK_TIMEOUT",
    "IBV_LINK_LAYER_INFINIBAND",
    "IBV_LINK_LAYER_ETHERNET",
];

/// Offset and size by structure and field; field "" is the whole.
type Layout = BTreeMap<(&'static str, &'static str), (usize, usize)>;

macro_rules! layout {
    ($($structure:ident { $($field:ident),* $(,)? })*) => {{
        let mut layout = Layout::new();
        $(
            layout.insert((stringify!($structure), ""), (0, size_of::<rdma_sys::$structure>()));
            $(
                let size = size_of_field(|s: &rdma_sys::$structure| &raw const s.$field);
                let offset = std::mem::offset_of!(rdma_sys::$structure, $field);
                layout.insert((stringify!($structure), stringify!($field)), (offset, size));
            )*
        )*
        layout
    }};
}

#[test]
fn every_structure_is_laid_out_as_rdma_sys_has_it() {
    let theirs = rdma_sys_layout();
    for Field {
        structure,
        field,
        offset,
        size,
    } in ours()
    {
        let found = theirs.get(&(structure, field));
        let found = found.unwrap_or_else(|| panic!("add {structure}.{field} to this test's list"));
        assert_eq!(
            (offset, size),
            *found,
            "offset and size of {structure}.{field}"
        );
    }
}

#[test]
fn every_structure_is_laid_out_as_the_headers_have_it() {
    let fields = ours();
    let lines = fields.iter().map(|Field { structure, field, .. }| match *field {
        "" => format!("print(0, sizeof(struct {structure}));"),
        field => format!("print(offsetof(struct {structure}, {field}), sizeof(((struct {structure} *)0)->{field}));"),
    });
    let found = run_c("layout", lines);
    assert_eq!(found.len(), fields.len());
    for (
        Field {
            structure,
            field,
            offset,
            size,
        },
        line,
    ) in fields.iter().zip(found)
    {
        assert_eq!(
            format!("{offset} {size}"),
            line,
            "offset and size of {structure}.{field}"
        );
    }
}

#[test]
fn every_number_is_the_one_of_rdma_sys() {
    let theirs = rdma_sys_numbers();
    for (name, value) in numbers() {
        if !NOT_IN_RDMA_SYS.contains(&name) {
            let found = theirs
                .get(name)
                .unwrap_or_else(|| panic!("add {name} to this test's list"));
            assert_eq!(value, *found, "{name}");
        }
    }
}

#[test]
fn every_number_is_the_one_of_the_headers() {
    let numbers = numbers();
    let found = run_c(
        "numbers",
        numbers
            .iter()
            .map(|(name, _)| format!("print((long long)({name}), 0);")),
    );
    assert_eq!(found.len(), numbers.len());
    for ((name, value), line) in numbers.iter().zip(found) {
        assert_eq!(format!("{value} 0"), line, "{name}");
    }
}

fn ours() -> Vec<Field> {
    let fields = ffi_layout::fields();
    assert!(
        fields.len() > 100,
        "only {} fields are listed",
        fields.len()
    );
    fields
}

fn numbers() -> Vec<(&'static str, i64)> {
    let numbers = ffi_layout::constants();
    assert!(
        numbers.len() > 30,
        "only {} numbers are listed",
        numbers.len()
    );
    numbers
}

/// Compiles a program of these lines with the system's headers and returns what it prints.
fn run_c(name: &str, lines: impl Iterator<Item = String>) -> Vec<String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, program) = (folder.join(format!("{name}.c")), folder.join(name));
    let text = format!(
        "#include <stddef.h>\n#include <stdio.h>\n#include <infiniband/verbs.h>\n#include <rdma/rdma_cma.h>\n\
         static void print(long long a, long long b) {{ printf(\"%lld %lld\\n\", a, b); }}\n\
         int main(void) {{\n{}\nreturn 0;\n}}\n",
        lines.collect::<Vec<_>>().join("\n")
    );
    fs::write(&source, text).expect("a C source in the target folder");
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
    let compiled = Command::new(&compiler)
        .arg(&source)
        .arg("-o")
        .arg(&program)
        .output();
    let compiled = compiled.unwrap_or_else(|error| panic!("no C compiler {compiler}: {error}"));
    assert!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    let output = Command::new(&program)
        .output()
        .expect("the program just compiled");
    assert!(output.status.success());
    String::from_utf8(output.stdout)
        .expect("digits")
        .lines()
        .map(str::to_owned)
        .collect()
}

fn size_of_field<S, F>(_: impl Fn(&S) -> *const F) -> usize {
    size_of::<F>()
}

fn rdma_sys_layout() -> Layout {
    layout! {
        ibv_device { node_type, transport_type, name, dev_name, dev_path, ibdev_path }
        ibv_context_ops {
            alloc_mw, bind_mw, dealloc_mw, poll_cq, req_notify_cq, post_srq_recv, post_send, post_recv,
        }
        ibv_context { device, ops, cmd_fd, async_fd, num_comp_vectors, mutex, abi_compat }
        ibv_device_attr {
            fw_ver, node_guid, sys_image_guid, max_mr_size, page_size_cap, vendor_id, vendor_part_id,
            hw_ver, max_qp, max_qp_wr, device_cap_flags, max_sge, max_sge_rd, max_cq, max_cqe, max_mr,
            max_pd, max_qp_rd_atom, max_ee_rd_atom, max_res_rd_atom, max_qp_init_rd_atom,
            max_ee_init_rd_atom, atomic_cap, max_ee, max_rdd, max_mw, max_raw_ipv6_qp, max_raw_ethy_qp,
            max_mcast_grp, max_mcast_qp_attach, max_total_mcast_qp_attach, max_ah, max_fmr,
            max_map_per_fmr, max_srq, max_srq_wr, max_srq_sge, max_pkeys, local_ca_ack_delay,
            phys_port_cnt,
        }
        ibv_gid_entry { gid, gid_index, port_num, gid_type, ndev_ifindex }
        ibv_port_attr {
            state, max_mtu, active_mtu, gid_tbl_len, port_cap_flags, max_msg_sz, bad_pkey_cntr,
            qkey_viol_cntr, pkey_tbl_len, lid, sm_lid, lmc, max_vl_num, sm_sl, subnet_timeout,
            init_type_reply, active_width, active_speed, phys_state, link_layer, flags,
            port_cap_flags2,
        }
        ibv_pd { context, handle }
        ibv_mr { context, pd, addr, length, handle, lkey, rkey }
        ibv_mw { context, pd, rkey, handle }
        ibv_mw_bind_info { mr, addr, length, mw_access_flags }
        ibv_comp_channel { context, fd, refcnt }
        ibv_cq {
            context, channel, cq_context, handle, cqe, mutex, cond, comp_events_completed,
            async_events_completed,
        }
        ibv_srq { context, srq_context, pd, handle, mutex, cond, events_completed }
        ibv_srq_attr { max_wr, max_sge, srq_limit }
        ibv_srq_init_attr { srq_context, attr }
        ibv_qp_cap { max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data }
        ibv_qp_init_attr { qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all }
        ibv_qp {
            context, qp_context, pd, send_cq, recv_cq, srq, handle, qp_num, state, qp_type, mutex,
            cond, events_completed,
        }
        ibv_global_route { dgid, flow_label, sgid_index, hop_limit, traffic_class }
        ibv_ah_attr { grh, dlid, sl, src_path_bits, static_rate, is_global, port_num }
        ibv_qp_attr {
            qp_state, cur_qp_state, path_mtu, path_mig_state, qkey, rq_psn, sq_psn, dest_qp_num,
            qp_access_flags, cap, ah_attr, alt_ah_attr, pkey_index, alt_pkey_index,
            en_sqd_async_notify, sq_draining, max_rd_atomic, max_dest_rd_atomic, min_rnr_timer,
            port_num, timeout, retry_cnt, rnr_retry, alt_port_num, alt_timeout, rate_limit,
        }
        ibv_sge { addr, length, lkey }
        ibv_send_wr { wr_id, next, sg_list, num_sge, opcode, send_flags, wr, qp_type }
        ibv_recv_wr { wr_id, next, sg_list, num_sge }
        ibv_wc {
            wr_id, status, opcode, vendor_err, byte_len, qp_num, src_qp, wc_flags, pkey_index, slid,
            sl, dlid_path_bits,
        }
        rdma_event_channel { fd }
        rdma_addr { }
        ibv_sa_path_rec {
            dgid, sgid, dlid, slid, raw_traffic, flow_label, hop_limit, traffic_class, reversible,
            numb_path, pkey, sl, mtu_selector, mtu, rate_selector, rate, packet_life_time_selector,
            packet_life_time, preference,
        }
        rdma_route { addr, path_rec, num_paths }
        rdma_cm_id {
            verbs, channel, context, qp, route, ps, port_num, event, send_cq_channel, send_cq,
            recv_cq_channel, recv_cq, srq, pd, qp_type,
        }
        rdma_conn_param {
            private_data, private_data_len, responder_resources, initiator_depth, flow_control,
            retry_count, rnr_retry_count, srq, qp_num,
        }
        rdma_ud_param { private_data, private_data_len, ah_attr, qp_num, qkey }
        rdma_cm_event { id, listen_id, event, status, param }
    }
}

fn rdma_sys_numbers() -> BTreeMap<&'static str, i64> {
    use rdma_sys::{
        ibv_access_flags, ibv_device_cap_flags, ibv_mtu, ibv_mw_type, ibv_port_state,
        ibv_qp_attr_mask, ibv_qp_state, ibv_qp_type, ibv_send_flags, ibv_transport_type,
        ibv_wc_flags, ibv_wc_opcode, ibv_wc_status, ibv_wr_opcode, rdma_cm_event_type,
        rdma_port_space,
    };
    macro_rules! numbers {
        (plain { $($module:ident: $($name:ident)*;)* } flags { $($flags:ident: $($flag:ident)*;)* }) => {
            BTreeMap::from([
                $($((stringify!($name), i64::from($module::$name)),)*)*
                $($((stringify!($flag), i64::from($flags::$flag.0)),)*)*
            ])
        };
    }
    numbers! {
        plain {
        rdma_port_space: RDMA_PS_TCP;
        rdma_cm_event_type: RDMA_CM_EVENT_ADDR_RESOLVED RDMA_CM_EVENT_ADDR_ERROR
            RDMA_CM_EVENT_ROUTE_RESOLVED RDMA_CM_EVENT_ROUTE_ERROR RDMA_CM_EVENT_CONNECT_REQUEST
            RDMA_CM_EVENT_CONNECT_RESPONSE RDMA_CM_EVENT_CONNECT_ERROR RDMA_CM_EVENT_UNREACHABLE
            RDMA_CM_EVENT_REJECTED RDMA_CM_EVENT_ESTABLISHED RDMA_CM_EVENT_DISCONNECTED
            RDMA_CM_EVENT_DEVICE_REMOVAL RDMA_CM_EVENT_ADDR_CHANGE RDMA_CM_EVENT_TIMEWAIT_EXIT;
        ibv_qp_type: IBV_QPT_RC;
        ibv_qp_state: IBV_QPS_INIT IBV_QPS_ERR;
        ibv_wr_opcode: IBV_WR_RDMA_WRITE IBV_WR_RDMA_WRITE_WITH_IMM IBV_WR_SEND IBV_WR_SEND_WITH_IMM
            IBV_WR_RDMA_READ IBV_WR_BIND_MW IBV_WR_SEND_WITH_INV;
        ibv_mw_type: IBV_MW_TYPE_2;
        ibv_wc_status: IBV_WC_SUCCESS IBV_WC_WR_FLUSH_ERR IBV_WC_GENERAL_ERR;
        ibv_wc_opcode: IBV_WC_RECV_RDMA_WITH_IMM;
        ibv_port_state: IBV_PORT_DOWN IBV_PORT_INIT IBV_PORT_ARMED IBV_PORT_ACTIVE IBV_PORT_ACTIVE_DEFER;
        ibv_mtu: IBV_MTU_256 IBV_MTU_4096;
        ibv_transport_type: IBV_TRANSPORT_IB IBV_TRANSPORT_IWARP;
        rdma_sys: IBV_GID_TYPE_IB IBV_GID_TYPE_ROCE_V1 IBV_GID_TYPE_ROCE_V2;
        } flags {
        ibv_qp_attr_mask: IBV_QP_STATE;
        ibv_access_flags: IBV_ACCESS_LOCAL_WRITE IBV_ACCESS_REMOTE_WRITE IBV_ACCESS_REMOTE_READ
            IBV_ACCESS_MW_BIND;
        ibv_device_cap_flags: IBV_DEVICE_MEM_WINDOW_TYPE_2A IBV_DEVICE_MEM_WINDOW_TYPE_2B;
        ibv_send_flags: IBV_SEND_FENCE IBV_SEND_SIGNALED IBV_SEND_SOLICITED IBV_SEND_INLINE;
        ibv_wc_flags: IBV_WC_WITH_IMM;
        }
    }
}
