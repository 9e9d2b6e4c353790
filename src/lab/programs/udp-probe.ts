// Sends a numbered datagram every interval and prints `s NUMBER TIME` when it left, `r NUMBER TIME` when its echo came
// (ms since the epoch). Arguments: address, port, interval in ms.

import { createSocket } from 'node:dgram'

const [address, port, interval] = process.argv.slice(2)
const socket = createSocket(address.includes(':') ? 'udp6' : 'udp4')
const now = () => (performance.timeOrigin + performance.now()).toFixed(2)
let number = 0

socket.on('message', message => {
  process.stdout.write(`r ${message.readUInt32BE(0)} ${now()}\n`)
})
// Unreachable destinations are what the probe is for: an unanswered number says it.
socket.on('error', () => {})
socket.connect(Number(port), address, () => {
  setInterval(() => {
    const message = Buffer.alloc(64, 'detour probe ')
    message.writeUInt32BE(number, 0)
    process.stdout.write(`s ${number} ${now()}\n`)
    number = (number + 1) >>> 0
    socket.send(message, () => {})
  }, Number(interval))
})
