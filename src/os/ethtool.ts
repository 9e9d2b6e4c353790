// What an interface offloads, as `ethtool -k` shows it (linux/ethtool.h).

import { AF, addressOf, close, ERRNO, ioctl, must, SOCK, socket, systemError } from './libc.ts'
import { inNamespace } from './netns.ts'

const SIOCETHTOOL = 0x8946
const ETHTOOL_GDRVINFO = 3
const ETHTOOL_GFEATURES = 0x3a
const ETHTOOL_GCHANNELS = 0x3c
/** NETIF_F_HW_CSUM_BIT (linux/netdev_features.h): completes a checksum at any offset. */
const HW_CSUM = 1 << 3

/** True when the interface completes partial checksums wherever they are, inside a tunnel too (`tx-checksum-ip-generic`). */
export function checksumsAnywhere(interfaceName: string, namespace: string): boolean {
  // struct ethtool_gfeatures with two blocks of available, requested, active, never_changed.
  const features = Uint32Array.of(ETHTOOL_GFEATURES, 2, 0, 0, 0, 0, 0, 0, 0, 0)
  return ask(interfaceName, namespace, features, 'ETHTOOL_GFEATURES') && (features[4] & HW_CSUM) !== 0
}

/** How many queues the interface receives by; 1 where it does not tell. */
export function receiveQueues(interfaceName: string, namespace: string): number {
  // struct ethtool_channels: four maxima, then rx, tx, other, combined.
  const channels = Uint32Array.of(ETHTOOL_GCHANNELS, 0, 0, 0, 0, 0, 0, 0, 0)
  return ask(interfaceName, namespace, channels, 'ETHTOOL_GCHANNELS') ? Math.max(1, channels[5] + channels[8]) : 1
}

/** The name of the interface's driver; '' where it does not tell. */
export function driverOf(interfaceName: string, namespace: string): string {
  // struct ethtool_drvinfo.
  const info = new Uint32Array(49)
  info[0] = ETHTOOL_GDRVINFO
  if (!ask(interfaceName, namespace, info, 'ETHTOOL_GDRVINFO')) return ''
  const text = Buffer.from(info.buffer, 4, 32).toString('latin1')
  return text.slice(0, text.indexOf('\0'))
}

/** Has the driver fill in `command`; false when it knows no such question. Throws DetourError. */
function ask(interfaceName: string, namespace: string, command: Uint32Array, label: string): boolean {
  const fd = inNamespace(namespace, () => must(socket(AF.INET, SOCK.DGRAM, 0), 'socket', 'for ethtool'))
  try {
    const request = Buffer.alloc(40)
    request.write(interfaceName)
    request.writeBigUInt64LE(BigInt(addressOf(command)), 16)
    const result = ioctl(fd, SIOCETHTOOL, request)
    if (result === -ERRNO.EOPNOTSUPP) return false
    if (result < 0) throw systemError(label, interfaceName, result)
    return true
  } finally {
    close(fd)
  }
}
