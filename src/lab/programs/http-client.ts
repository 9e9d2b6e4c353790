// One HTTP GET on a connection of its own. Arguments: URL, limit in ms. Prints an Exchange as one line of JSON.

import { Agent, get } from 'node:http'
import type { Exchange } from '../traffic.ts'

const [url, limit] = process.argv.slice(2)
const started = performance.now()

function finish(status: number | null, bytes: number, error: string | null): void {
  const ms = Math.round((performance.now() - started) * 10) / 10
  process.stdout.write(`${JSON.stringify({ status, bytes, error, ms } satisfies Exchange)}\n`, () => process.exit(0))
}

const request = get(url, { agent: new Agent({ keepAlive: false }) }, response => {
  let bytes = 0
  response.on('data', (chunk: Buffer) => {
    bytes += chunk.length
  })
  response.on('end', () => finish(response.statusCode ?? null, bytes, null))
  response.on('error', (error: NodeJS.ErrnoException) =>
    finish(response.statusCode ?? null, bytes, error.code ?? error.message),
  )
})
request.on('error', (error: NodeJS.ErrnoException) => finish(null, 0, error.code ?? error.message))
setTimeout(() => finish(null, 0, 'timeout'), Number(limit))
