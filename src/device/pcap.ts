// The pcap device: capture files in, capture files out.
export {
  type CaptureFile,
  type CaptureFormat,
  closeCapture,
  createCapture,
  type OutputFile,
  openCapture,
} from './pcap-file.ts'
export { Origins } from './pcap-origins.ts'
export { createPieces, Pieces, type PiecesHandle } from './pcap-pieces.ts'
export { PcapReader, type PcapReaderOptions, type Rate } from './pcap-reader.ts'
export { PcapWriter, type PcapWriterOptions } from './pcap-writer.ts'
