use proptest::prelude::*;

use super::*;

fn decode(request: &Request, descriptors: usize) -> Result<Request, DecodeError> {
    let payload = request.payload();
    Request::decode(Header::request(request.code(), payload.len(), false), &payload, descriptors)
}

fn region() -> impl Strategy<Value = MemoryRegion> {
    any::<[u64; 4]>().prop_map(|[guest_addr, size_bytes, user_addr, mmap_offset]| MemoryRegion {
        guest_addr,
        size_bytes,
        user_addr,
        mmap_offset,
    })
}

fn inflight() -> impl Strategy<Value = Inflight> {
    any::<([u64; 2], [u16; 2])>().prop_map(|([size_bytes, mmap_offset], [queues, queue_size])| Inflight {
        size_bytes,
        mmap_offset,
        queues,
        queue_size,
    })
}

/// Any request, with the number of descriptors that goes with it.
fn request() -> impl Strategy<Value = (Request, usize)> {
    let vring = (any::<u8>(), any::<bool>()).prop_map(|(index, has_fd)| VringFd { index, has_fd });
    prop_oneof![
        Just((Request::GetFeatures, 0)),
        Just((Request::GetQueueNum, 0)),
        any::<u64>().prop_map(|v| (Request::SetFeatures(v), 0)),
        any::<u64>().prop_map(|v| (Request::SetProtocolFeatures(v), 0)),
        prop::collection::vec(region(), 0..=MAX_TABLE_REGIONS)
            .prop_map(|r| (Request::SetMemTable(r.clone()), r.len())),
        any::<(u32, u32)>().prop_map(|(index, num)| (Request::SetVringNum { index, num }, 0)),
        any::<(u32, u32)>().prop_map(|(index, base)| (Request::SetVringBase { index, base }, 0)),
        any::<(u32, u32)>().prop_map(|(index, enable)| (Request::SetVringEnable { index, enable }, 0)),
        any::<u32>().prop_map(|index| (Request::GetVringBase { index }, 0)),
        vring.clone().prop_map(|v| (Request::SetVringKick(v), usize::from(v.has_fd))),
        vring.clone().prop_map(|v| (Request::SetVringCall(v), usize::from(v.has_fd))),
        vring.prop_map(|v| (Request::SetVringErr(v), usize::from(v.has_fd))),
        any::<([u32; 2], [u64; 4])>().prop_map(|([index, flags], [descriptor, used, available, log])| {
            (Request::SetVringAddr(VringAddr { index, flags, descriptor, used, available, log }), 0)
        }),
        (any::<u32>(), 0u32..256).prop_map(|(offset, size)| (Request::GetConfig { offset, size }, 0)),
        (any::<u32>(), prop::collection::vec(any::<u8>(), 0..256))
            .prop_map(|(offset, data)| (Request::SetConfig { offset, data: data.into() }, 0)),
        region().prop_map(|r| (Request::AddMemReg(r), 1)),
        region().prop_map(|r| (Request::RemMemReg(r), 0)),
        any::<(u64, u64)>()
            .prop_map(|(size_bytes, mmap_offset)| (Request::SetLogBase { size_bytes, mmap_offset }, 1)),
        inflight().prop_map(|i| (Request::GetInflightFd(i), 0)),
        inflight().prop_map(|i| (Request::SetInflightFd(i), 1)),
        any::<[u8; 6]>().prop_map(|mac| (Request::SendRarp { mac }, 0)),
        any::<u64>().prop_map(|mtu_bytes| (Request::NetSetMtu { mtu_bytes }, 0)),
        any::<u64>().prop_map(|v| (Request::SetStatus(v), 0)),
        any::<(u32, u32)>()
            .prop_map(|(direction, phase)| (Request::SetDeviceStateFd { direction, phase }, 1)),
        prop_oneof![Just(Request::SetLogFd), Just(Request::SetBackendReqFd)].prop_map(|r| (r, 1)),
        prop_oneof![Just(Request::ResetDevice), Just(Request::GetStatus), Just(Request::CheckDeviceState)]
            .prop_map(|r| (r, 0)),
    ]
}

proptest! {
    #[test]
    fn every_request_comes_back_from_its_bytes((request, descriptors) in request()) {
        prop_assert_eq!(decode(&request, descriptors), Ok(request));
    }

    #[test]
    fn any_bytes_decode_or_are_refused(number in 0u32..64, bytes in prop::collection::vec(any::<u8>(), 0..400), fds in 0usize..10) {
        let header = Header { request: number, flags: 1, size: 0 };
        if let Ok(request) = Request::decode(header, &bytes, fds) {
            prop_assert_eq!(request.code() as u32, number);
        }
    }

    #[test]
    fn headers_come_back_from_their_bytes(request: u32, flags: u32, size: u32) {
        let header = Header { request, flags, size };
        prop_assert_eq!(Header::from_bytes(header.to_bytes()), header);
    }
}

#[test]
fn replies_come_back_from_their_bytes() {
    let replies = [
        (Code::GetFeatures, Reply::U64(1 << 40)),
        (Code::GetVringBase, Reply::VringState { index: 3, base: 65535 }),
        (Code::GetConfig, Reply::Config { offset: 4, data: vec![1, 2, 3] }),
        (Code::GetConfig, Reply::Config { offset: 0, data: vec![] }),
        (
            Code::GetInflightFd,
            Reply::Inflight(Inflight { size_bytes: 1 << 20, mmap_offset: 4096, queues: 8, queue_size: 256 }),
        ),
    ];
    for (code, reply) in replies {
        assert_eq!(Reply::decode(code, &reply.payload()), Some(reply));
    }
    assert_eq!(Reply::decode(Code::GetFeatures, &[0; 7]), None);
    assert_eq!(Reply::decode(Code::GetFeatures, &[0; 9]), None);
}

#[test]
fn an_inflight_region_may_come_with_or_without_padding() {
    let request =
        Request::SetInflightFd(Inflight { size_bytes: 8, mmap_offset: 7, queues: 6, queue_size: 5 });
    for bytes in [20, 24] {
        let header = Header::request(Code::SetInflightFd, bytes, false);
        let decoded = Request::decode(header, &request.payload()[..bytes], 1);
        assert_eq!(decoded.as_ref(), Ok(&request));
    }
}

#[test]
fn every_length_but_the_right_one_is_refused() {
    let request = Request::SetVringNum { index: 0, num: 256 };
    for bytes in (0..64).filter(|bytes| *bytes != request.payload().len()) {
        let header = Header::request(Code::SetVringNum, bytes, false);
        let refused = Request::decode(header, &vec![0; bytes], 0);
        assert_eq!(refused, Err(DecodeError::Length { code: Code::SetVringNum, got: bytes }));
    }
}

#[test]
fn a_table_over_the_limit_is_refused_before_it_is_read() {
    let mut payload = u64::from(u32::MAX).to_le_bytes().to_vec();
    payload.resize(8 + 8 * 32, 0);
    let header = Header::request(Code::SetMemTable, payload.len(), false);
    assert_eq!(Request::decode(header, &payload, 8), Err(DecodeError::Regions(u32::MAX)));
}

#[test]
fn descriptors_must_be_as_many_as_the_message_says() {
    let kick = Request::SetVringKick(VringFd { index: 1, has_fd: true });
    let refused = |got| Err(DecodeError::Descriptors { code: Code::SetVringKick, got });
    assert_eq!(decode(&kick, 0), refused(0));
    assert_eq!(decode(&kick, 2), refused(2));
    assert!(decode(&kick, 1).is_ok());
    assert!(decode(&Request::GetFeatures, 1).is_err());
}

#[test]
fn a_queue_number_over_eight_bits_is_not_cut_to_eight() {
    for value in [0x200u64, 0x1_0000, u64::from(u32::MAX) + 1] {
        let header = Header::request(Code::SetVringKick, 8, false);
        assert!(Request::decode(header, &value.to_le_bytes(), 1).is_err());
    }
}

#[test]
fn only_version_one_is_spoken() {
    let header = Header { request: 1, flags: 2, size: 0 };
    assert_eq!(Request::decode(header, &[], 0), Err(DecodeError::Version(2)));
}

#[test]
fn unknown_numbers_are_named() {
    let header = Header { request: 999, flags: 1, size: 0 };
    assert_eq!(Request::decode(header, &[], 0), Err(DecodeError::Unknown(999)));
}

/// Our numbers against those of an independent implementation.
#[test]
fn request_numbers_are_those_of_the_vhost_crate() {
    use vhost::vhost_user::message::FrontendReq;
    let pairs = [
        (Code::GetFeatures, FrontendReq::GET_FEATURES),
        (Code::SetMemTable, FrontendReq::SET_MEM_TABLE),
        (Code::SetVringNum, FrontendReq::SET_VRING_NUM),
        (Code::SetVringAddr, FrontendReq::SET_VRING_ADDR),
        (Code::GetVringBase, FrontendReq::GET_VRING_BASE),
        (Code::SetVringEnable, FrontendReq::SET_VRING_ENABLE),
        (Code::GetConfig, FrontendReq::GET_CONFIG),
        (Code::GetMaxMemSlots, FrontendReq::GET_MAX_MEM_SLOTS),
        (Code::AddMemReg, FrontendReq::ADD_MEM_REG),
        (Code::RemMemReg, FrontendReq::REM_MEM_REG),
        (Code::SetLogBase, FrontendReq::SET_LOG_BASE),
        (Code::SendRarp, FrontendReq::SEND_RARP),
        (Code::NetSetMtu, FrontendReq::NET_SET_MTU),
        (Code::SetBackendReqFd, FrontendReq::SET_BACKEND_REQ_FD),
        (Code::ResetDevice, FrontendReq::RESET_DEVICE),
        (Code::SetStatus, FrontendReq::SET_STATUS),
        (Code::GetStatus, FrontendReq::GET_STATUS),
        (Code::SetDeviceStateFd, FrontendReq::SET_DEVICE_STATE_FD),
        (Code::CheckDeviceState, FrontendReq::CHECK_DEVICE_STATE),
    ];
    for (ours, theirs) in pairs {
        assert_eq!(ours as u32, theirs as u32, "{ours:?}");
    }
}
