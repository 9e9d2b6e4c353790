// Bulk TCP where iperf3 is not installed: `receive ADDRESS PORT` takes one connection and prints [seconds, bytes] per
// interval as one line of JSON; `send ADDRESS PORT SECONDS` writes as fast as it may.

import { connect, createServer } from 'node:net'

const INTERVAL_MS = 250
const [mode, address, port, seconds] = process.argv.slice(2)

if (mode === 'receive') receive()
else send()

function receive(): void {
  const server = createServer(socket => {
    server.close()
    const started = performance.now()
    const samples: [number, number][] = []
    let bytes = 0
    const sample = () => {
      samples.push([(performance.now() - started) / 1000, bytes])
      bytes = 0
    }
    const timer = setInterval(sample, INTERVAL_MS)
    socket.on('data', chunk => {
      bytes += chunk.length
    })
    socket.on('error', () => socket.destroy())
    socket.on('close', () => {
      clearInterval(timer)
      sample()
      process.stdout.write(`${JSON.stringify(samples)}\n`, () => process.exit(0))
    })
  })
  server.listen(Number(port), address, () => console.log('ready'))
}

function send(): void {
  const block = Buffer.alloc(1 << 20)
  const socket = connect(Number(port), address)
  const write = () => {
    while (socket.write(block));
  }
  socket.on('connect', () => {
    setTimeout(() => {
      socket.off('drain', write)
      socket.end(() => process.exit(0))
    }, Number(seconds) * 1000)
    write()
  })
  socket.on('drain', write)
  socket.on('error', error => {
    console.error(error.message)
    process.exit(1)
  })
}
