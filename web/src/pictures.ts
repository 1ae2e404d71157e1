/** Images that go with a question: read from files, and made small enough to be sent. */

export interface Picture {
  name: string;
  /** The bytes in base64. */
  data: string;
  /** An address within this tab, under which it is shown. */
  url: string;
  bytes: number;
}

/** Images of one question, and bytes of all of them, at most: the bounds of the service. */
export const MOST_PICTURES = 4;
export const MOST_BYTES = 4 << 20;
/** A larger file is drawn again: at most so many pixels wide and high, which is more than models see. */
const PLAIN_BYTES = 1 << 20;
const EDGE = 2048;
const QUALITY = 0.85;
const FORMATS = ["image/png", "image/jpeg", "image/webp", "image/gif"];

/** What a field for files accepts. */
export const ACCEPTED = FORMATS.join(",");

/** Reads the file of an image. Throws an `Error` with a text for the user. */
export async function readPicture(file: File): Promise<Picture> {
  const isPlain = FORMATS.includes(file.type) && file.size <= PLAIN_BYTES;
  const blob = isPlain ? file : await drawnAgain(file);
  return { name: file.name, data: await base64(blob), url: URL.createObjectURL(blob), bytes: blob.size };
}

async function drawnAgain(file: File): Promise<Blob> {
  const image = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name} is no image that this browser can read.`);
  });
  const scale = Math.min(1, EDGE / Math.max(image.width, image.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(image.width * scale));
  canvas.height = Math.max(1, Math.round(image.height * scale));
  canvas.getContext("2d")?.drawImage(image, 0, 0, canvas.width, canvas.height);
  image.close();
  const drawn = await new Promise<Blob | null>((resolve) => {
    canvas.toBlob(resolve, "image/jpeg", QUALITY);
  });
  if (!drawn) throw new Error(`${file.name} cannot be made smaller.`);
  return drawn;
}

function base64(blob: Blob): Promise<string> {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result).replace(/^[^,]*,/, ""));
    reader.onerror = () => reject(new Error("The file cannot be read."));
    reader.readAsDataURL(blob);
  });
}
