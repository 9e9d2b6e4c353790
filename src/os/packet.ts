// Packet sockets (packet(7)): the Ethernet frames that come in by an existing interface, and frames to go out by it, each
// behind a virtio-net header.

import { DetourError } from '../errors.ts'
import { AF, bind, close, interfaceIndex, ioctl, must, SOCK, setsockopt, socket } from './libc.ts'
import { inNamespace } from './netns.ts'
import { UDP_OPTION } from './udp.ts'

const SOL_PACKET = 263
const PACKET_ADD_MEMBERSHIP = 1
const PACKET_VNET_HDR = 15
const PACKET_IGNORE_OUTGOING = 23
const PACKET_MR_PROMISC = 1
const ETH_P_ALL = 3
const SIOCGIFFLAGS = 0x8913
const IFF_UP = 1

/** Bytes of struct virtio_net_hdr, which stands in front of each frame. */
const HEADER = 10
/** Bytes of socket buffer asked for, each way. */
const BUFFER = 8 << 20

/** An open packet socket: plain data that passes through workerData (a descriptor belongs to the process). */
export interface PacketSocket {
  /** Of the interface. */
  name: string
  /** Non-blocking, close-on-exec. */
  fd: number
  headerSize: number
}

/** Opens a socket on an interface that is up, promiscuous while it is open; frames that others send by it are not seen. Throws DetourError. */
export function openPacketSocket(name: string, namespace = ''): PacketSocket {
  return inNamespace(namespace, () => {
    const index = interfaceIndex(name)
    if (index === 0)
      throw new DetourError('not-found', `interface ${name} does not exist in namespace ${namespace || '(current)'}`)
    // NB: protocol 0, or frames of every interface would come in before it is bound to one.
    const fd = must(socket(AF.PACKET, SOCK.RAW | SOCK.NONBLOCK, 0), 'socket AF_PACKET', name)
    try {
      if (!isUp(fd, name)) throw new DetourError('bad-config', `interface ${name} is down: ip link set ${name} up`)
      const set = (option: number, value: number | ArrayBufferView, label: string) =>
        must(setsockopt(fd, SOL_PACKET, option, value), label, name)
      set(PACKET_VNET_HDR, 1, 'PACKET_VNET_HDR')
      set(PACKET_IGNORE_OUTGOING, 1, 'PACKET_IGNORE_OUTGOING')
      const membership = new DataView(new ArrayBuffer(16))
      membership.setInt32(0, index, true)
      membership.setUint16(4, PACKET_MR_PROMISC, true)
      set(PACKET_ADD_MEMBERSHIP, membership, 'PACKET_ADD_MEMBERSHIP')
      const { SOL_SOCKET, SO_RCVBUFFORCE, SO_SNDBUFFORCE } = UDP_OPTION
      must(setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, BUFFER), 'SO_RCVBUFFORCE', name)
      must(setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, BUFFER), 'SO_SNDBUFFORCE', name)
      const address = new DataView(new ArrayBuffer(20))
      address.setUint16(0, AF.PACKET, true)
      address.setUint16(2, ETH_P_ALL)
      address.setInt32(4, index, true)
      must(bind(fd, address), 'bind AF_PACKET', name)
      return { name, fd, headerSize: HEADER }
    } catch (error) {
      close(fd)
      throw error
    }
  })
}

function isUp(fd: number, name: string): boolean {
  const request = Buffer.alloc(40)
  request.write(name)
  must(ioctl(fd, SIOCGIFFLAGS, request), 'SIOCGIFFLAGS', name)
  return (request.readUInt16LE(16) & IFF_UP) !== 0
}
