// The server outside and how pods talk to it.

import type { Output } from './cri.ts'
import { type Scene, SERVER } from './scene.ts'

export const PORT = 8080
const START_LIMIT_MS = 60_000

/** Where the web server outside is. */
export const url = (path: string, host = SERVER) => `http://${host}:${PORT}${path}`

/** Asks it for a page from inside a pod. NB: the static busybox has a wget that crashes at -T. */
export const get = (pod: { exec(...command: string[]): Promise<Output> }, path: string, limitSeconds = 20) =>
  pod.exec('timeout', `${limitSeconds}`, 'wget', '-q', '-O', '-', url(path))

/** What a shell in a pod does to send a datagram outside, some times: busybox has nothing simpler than TFTP. */
export const datagram = (port: number) => `timeout 3 tftp -g -r first -l /tmp/none ${SERVER} ${port}`

/** Starts the web server outside, which answers every request with its path; the function says who asked what so far. */
export async function startServer(scene: Scene): Promise<() => string[]> {
  const server = scene.start('out', 'server', ['python3', '-u', '-c', SERVER_PROGRAM, `${PORT}`])
  await server.line(line => line === 'ready', START_LIMIT_MS)
  return () => server.lines.slice(1)
}

const SERVER_PROGRAM = `
import http.server, socket, sys
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print(self.client_address[0].removeprefix('::ffff:'), self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode())
    def log_message(self, *words): pass
server = Server(('::', int(sys.argv[1])), Handler)
print('ready')
server.serve_forever()
`
