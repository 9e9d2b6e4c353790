// Container images without a registry: a root file system around Debian's static busybox, and an OCI image layout in a tar
// around that.

import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { copyFileSync, mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

const APPLETS = ['sh', 'sleep', 'usleep', 'timeout', 'cat', 'wget', 'httpd', 'nc', 'tftp', 'ping', 'ip']

/** Makes a root file system in a folder that is not there yet. */
export function makeRootfs(folder: string): string {
  for (const part of ['bin', 'etc', 'tmp', 'proc', 'sys', 'dev']) mkdirSync(join(folder, part), { recursive: true })
  copyFileSync('/usr/bin/busybox', join(folder, 'bin/busybox'))
  for (const name of APPLETS) symlinkSync('busybox', join(folder, 'bin', name))
  writeFileSync(join(folder, 'etc/passwd'), 'root:x:0:0:root:/:/bin/sh\n')
  return folder
}

/** Writes an OCI image layout (image-spec v1) of one layer to a tar; `name` is what the runtime knows it by. */
export function writeImage(folder: string, rootfs: string, name: string, command: string[]): string {
  const layout = join(folder, 'layout')
  mkdirSync(join(layout, 'blobs/sha256'), { recursive: true })
  const layer = join(folder, 'layer.tar')
  execFileSync('tar', ['-C', rootfs, '--owner=0', '--group=0', '--numeric-owner', '-cf', layer, '.'])

  const blob = (mediaType: string, bytes: Uint8Array | string) => {
    const digest = createHash('sha256').update(bytes).digest('hex')
    const path = join(layout, 'blobs/sha256', digest)
    writeFileSync(path, bytes)
    return { mediaType, digest: `sha256:${digest}`, size: statSync(path).size }
  }
  const json = (mediaType: string, value: object) => blob(mediaType, JSON.stringify(value))
  const layerBlob = blob('application/vnd.oci.image.layer.v1.tar', readFileSync(layer))
  const config = json('application/vnd.oci.image.config.v1+json', {
    architecture: process.arch === 'x64' ? 'amd64' : process.arch,
    os: 'linux',
    config: { Cmd: command, Env: ['PATH=/bin'] },
    rootfs: { type: 'layers', diff_ids: [layerBlob.digest] },
  })
  const manifest = json('application/vnd.oci.image.manifest.v1+json', { schemaVersion: 2, config, layers: [layerBlob] })
  const annotations = { 'io.containerd.image.name': name }
  writeFileSync(join(layout, 'oci-layout'), '{"imageLayoutVersion":"1.0.0"}')
  writeFileSync(
    join(layout, 'index.json'),
    JSON.stringify({ schemaVersion: 2, manifests: [{ ...manifest, annotations }] }),
  )
  const image = join(folder, 'image.tar')
  execFileSync('tar', ['-C', layout, '-cf', image, '.'])
  return image
}
