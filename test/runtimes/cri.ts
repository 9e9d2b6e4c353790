// A kubelet's side of the container runtime interface: gRPC over a Unix socket, with the few calls that run a pod.

import { Client, credentials, type ServiceError } from '@grpc/grpc-js'
import protobuf from 'protobufjs'

const root = protobuf.loadSync(new URL('cri.proto', import.meta.url).pathname)

export interface PodConfig {
  metadata: { name: string; uid: string; namespace: string; attempt?: number }
  annotations?: Record<string, string>
  portMappings?: { containerPort: number; hostPort: number }[]
  linux?: { cgroupParent?: string }
  logDirectory?: string
}

export interface Output {
  stdout: string
  stderr: string
  exitCode: number
}

/** The calls, by the interface's names; messages as protobufjs knows them. Rejects with gRPC's error, whose `details` are the runtime's words. */
export class Cri {
  private readonly client: Client

  constructor(socket: string) {
    this.client = new Client(`unix:${socket}`, credentials.createInsecure())
  }

  /** Whether the runtime could run a pod, and the network configuration that it would use, as JSON. */
  async status(): Promise<{ ready: boolean; network: string }> {
    const { status, info } = await this.call('RuntimeService', 'Status', { verbose: true })
    const { conditions } = status as { conditions: { status: boolean }[] }
    return { ready: conditions.every(each => each.status), network: (info as { cniconfig?: string }).cniconfig ?? '' }
  }

  async hasImage(image: string): Promise<boolean> {
    return (await this.call('ImageService', 'ImageStatus', { image: { image } })).image != null
  }

  async runPod(config: PodConfig): Promise<string> {
    return (await this.call('RuntimeService', 'RunPodSandbox', { config })).podSandboxId as string
  }

  async stopPod(podSandboxId: string): Promise<void> {
    await this.call('RuntimeService', 'StopPodSandbox', { podSandboxId })
  }

  async removePod(podSandboxId: string): Promise<void> {
    await this.call('RuntimeService', 'RemovePodSandbox', { podSandboxId })
  }

  async pods(): Promise<string[]> {
    const { items } = await this.call('RuntimeService', 'ListPodSandbox', {})
    return (items as { id: string }[]).map(({ id }) => id)
  }

  /** A pod's address, and the network namespace that the runtime made for it. */
  async podNetwork(podSandboxId: string): Promise<{ address: string; namespace: string }> {
    const { status, info } = await this.call('RuntimeService', 'PodSandboxStatus', { podSandboxId, verbose: true })
    const { runtimeSpec } = JSON.parse((info as { info: string }).info)
    const namespaces = runtimeSpec.linux.namespaces as { type: string; path?: string }[]
    return {
      address: (status as { network: { ip: string } }).network.ip,
      namespace: namespaces.find(({ type }) => type === 'network')?.path ?? '',
    }
  }

  async createContainer(
    podSandboxId: string,
    pod: PodConfig,
    name: string,
    image: string,
    command: string[],
  ): Promise<string> {
    const config = { metadata: { name }, image: { image }, command, logPath: `${name}.log` }
    const request = { podSandboxId, config, sandboxConfig: pod }
    return (await this.call('RuntimeService', 'CreateContainer', request)).containerId as string
  }

  async startContainer(containerId: string): Promise<void> {
    await this.call('RuntimeService', 'StartContainer', { containerId })
  }

  async exec(containerId: string, ...cmd: string[]): Promise<Output> {
    const { stdout, stderr, exitCode } = await this.call('RuntimeService', 'ExecSync', {
      containerId,
      cmd,
      timeout: 60,
    })
    return { stdout: `${stdout}`, stderr: `${stderr}`, exitCode: exitCode as number }
  }

  close(): void {
    this.client.close()
  }

  private call(service: string, method: string, request: object): Promise<Record<string, unknown>> {
    const { requestType, responseType } = root.lookupService(`runtime.v1.${service}`).methods[method]
    const input = root.lookupType(`runtime.v1.${requestType}`)
    const output = root.lookupType(`runtime.v1.${responseType}`)
    return new Promise((resolve, reject) => {
      this.client.makeUnaryRequest(
        `/runtime.v1.${service}/${method}`,
        (message: object) => Buffer.from(input.encode(input.fromObject(message)).finish()),
        (bytes: Buffer) => output.toObject(output.decode(bytes), { defaults: true, longs: Number }),
        request,
        { deadline: Date.now() + DEADLINE_MS },
        (error: ServiceError | null, answer?: Record<string, unknown>) => (error ? reject(error) : resolve(answer!)),
      )
    })
  }
}

const DEADLINE_MS = 60_000
