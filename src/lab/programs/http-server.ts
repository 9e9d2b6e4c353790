// HTTP server of the laboratory's server pod. Arguments: address, port.

import { createServer } from 'node:http'

const [address, port] = process.argv.slice(2)
const pages: Record<string, string> = {
  '/allowed': `${'This page may be read by anybody. '.repeat(64)}\n`,
  '/secret': 'This page must never leave the server.\n',
}

const server = createServer((request, response) => {
  const page = pages[request.url ?? '']
  response.writeHead(page === undefined ? 404 : 200, { 'content-type': 'text/plain' })
  response.end(page ?? 'no such page\n')
})
server.listen(Number(port), address, () => console.log('ready'))
