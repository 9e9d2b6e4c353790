// UDP echo server of the probe. Arguments: address, port.

import { createSocket } from 'node:dgram'

const [address, port] = process.argv.slice(2)
const socket = createSocket(address.includes(':') ? 'udp6' : 'udp4')
socket.on('message', (message, from) => socket.send(message, from.port, from.address))
socket.bind(Number(port), address, () => console.log('ready'))
