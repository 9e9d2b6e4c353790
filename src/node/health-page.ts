// A small HTTP server for pages that machines read: bounded in everything that a stranger could do to it.

import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { type AddressInfo, BlockList, isIP } from 'node:net'
import { DetourError } from '../errors.ts'

export interface Page {
  status: number
  type: string
  body: string
}

/** Makes a page when it is asked for. */
export type Pages = Record<string, () => Page | Promise<Page>>

export interface PageServer {
  /** `HOST:PORT` as it listens. */
  readonly address: string
  /** False where others than this machine may reach it. */
  readonly loopback: boolean
  close(): Promise<void>
}

const CONNECTIONS = 32
const PATIENCE_MS = 5000

const loopback = new BlockList()
loopback.addSubnet('127.0.0.0', 8, 'ipv4')
loopback.addAddress('::1', 'ipv6')

/** Serves pages by path at `HOST:PORT`. Throws DetourError when the address cannot be had. */
export async function servePages(listen: string, pages: Pages): Promise<PageServer> {
  const { host, port } = splitAddress(listen)
  const limits = { headersTimeout: PATIENCE_MS, requestTimeout: PATIENCE_MS, keepAliveTimeout: PATIENCE_MS }
  const server = createServer({ ...limits, maxHeaderSize: 8192 }, (request, response) => {
    void answer(request, response, pages)
  })
  server.maxConnections = CONNECTIONS
  server.setTimeout(2 * PATIENCE_MS)
  await new Promise<void>((resolve, reject) => {
    server.once('error', error => {
      const advice = 'choose another address for metrics.listen, or none'
      reject(new DetourError('system', `metrics: cannot listen at ${listen} (${error.message}); ${advice}`))
    })
    server.listen({ host, port }, resolve)
  })
  // A fault of one connection is that connection's.
  server.removeAllListeners('error').on('error', () => {})
  const bound = server.address() as AddressInfo
  const isLocal = loopback.check(bound.address, bound.family === 'IPv6' ? 'ipv6' : 'ipv4')
  return {
    address: bound.family === 'IPv6' ? `[${bound.address}]:${bound.port}` : `${bound.address}:${bound.port}`,
    loopback: isLocal,
    close: () =>
      new Promise(resolve => {
        server.close(() => resolve())
        server.closeAllConnections()
      }),
  }
}

async function answer(request: IncomingMessage, response: ServerResponse, pages: Pages): Promise<void> {
  const path = (request.url ?? '').split('?', 1)[0]
  const make = Object.hasOwn(pages, path) ? pages[path] : undefined
  let page: Page
  if (make === undefined) page = text(404, `there is ${Object.keys(pages).join(', ')}`)
  else if (request.method !== 'GET' && request.method !== 'HEAD') {
    response.setHeader('Allow', 'GET, HEAD')
    page = text(405, 'only GET and HEAD')
  } else {
    try {
      page = await make()
    } catch (error) {
      page = text(500, (error as Error).message)
    }
  }
  const body = Buffer.from(page.body)
  // What else was sent is not read.
  if (page.status >= 400 && request.method !== 'GET' && request.method !== 'HEAD')
    response.setHeader('Connection', 'close')
  response.writeHead(page.status, {
    'Content-Type': page.type,
    'Content-Length': body.length,
    'Cache-Control': 'no-store',
    'X-Content-Type-Options': 'nosniff',
  })
  response.end(request.method === 'HEAD' ? undefined : body)
}

/** A page of one line. */
export function text(status: number, line: string): Page {
  return { status, type: 'text/plain; charset=utf-8', body: `${line}\n` }
}

function splitAddress(listen: string): { host: string; port: number } {
  const [, host = '', digits = ''] = /^\[?([^\]]+?)\]?:(\d{1,5})$/.exec(listen) ?? []
  const port = Number(digits)
  if (isIP(host) !== 0 && digits !== '' && port <= 65535) return { host, port }
  throw new DetourError('bad-config', `metrics.listen ${listen}: allowed: an address and port like 127.0.0.1:9469`)
}
