// A process that receives from an interface by AF_XDP until its stdin closes, or until it is killed.
//
// argv: namespace and interface. Prints `ready`, and at the end, as JSON, how its program was attached.

import { everything } from '../../src/control/xdp-programs.ts'
import { XdpDevice } from '../../src/device/xdp.ts'
import { StageCounters } from '../../src/memory/counters.ts'
import { createLivePool, umemOf } from '../../src/memory/live.ts'
import { HEADROOM, Pool } from '../../src/memory/pool.ts'
import { openXdp, steerToSockets } from '../../src/os/xdp.ts'

const [namespace, name] = process.argv.slice(2)
const handle = createLivePool({ frames: 1025, frameSize: 4096, headroom: HEADROOM, small: 1024 })
const socket = openXdp(umemOf(handle), { namespace, interface: name, receive: true, ringSize: 256 })
const device = new XdpDevice(new Pool(handle), new StageCounters(name), socket)
const steering = steerToSockets({ namespace, interface: name, sockets: [socket] }, everything)
console.log('ready')
process.stdin.resume()
process.stdin.once('end', () => {
  steering.close()
  device.close()
  console.log(JSON.stringify({ attach: steering.attach }))
})
