// What an interface offloads, as `ethtool -k` shows it (linux/ethtool.h).

import { AF, addressOf, close, ERRNO, ioctl, must, SOCK, socket, systemError } from './libc.ts'
import { inNamespace } from './netns.ts'

const SIOCETHTOOL = 0x8946
const ETHTOOL_GFEATURES = 0x3a
/** NETIF_F_HW_CSUM_BIT (linux/netdev_features.h): completes a checksum at any offset. */
const HW_CSUM = 1 << 3

/** True when the interface completes partial checksums wherever they are, inside a tunnel too (`tx-checksum-ip-generic`). */
export function checksumsAnywhere(interfaceName: string, namespace: string): boolean {
  const fd = inNamespace(namespace, () => must(socket(AF.INET, SOCK.DGRAM, 0), 'socket', 'for ethtool'))
  try {
    // struct ethtool_gfeatures with two blocks of available, requested, active, never_changed.
    const features = Uint32Array.of(ETHTOOL_GFEATURES, 2, 0, 0, 0, 0, 0, 0, 0, 0)
    const request = Buffer.alloc(40)
    request.write(interfaceName)
    request.writeBigUInt64LE(BigInt(addressOf(features)), 16)
    const result = ioctl(fd, SIOCETHTOOL, request)
    if (result === -ERRNO.EOPNOTSUPP) return false
    if (result < 0) throw systemError('ETHTOOL_GFEATURES', interfaceName, result)
    return (features[4] & HW_CSUM) !== 0
  } finally {
    close(fd)
  }
}
