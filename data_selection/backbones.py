from pathlib import Path
from timm.models.vision_transformer import VisionTransformer
DEMO_WEIGHTS = Path(__file__).parent / "demo" / "demo_vit.safetensors"
def build_model(name, num_classes=0, drop_path_rate=0.0):
    return VisionTransformer(img_size=28, patch_size=7, in_chans=3, embed_dim=192, depth=DEPTH, num_heads=3, num_classes=num_classes, drop_path_rate=drop_path_rate, dynamic_img_size=True)
import os
DEPTH=int(os.environ.get("DEPTH","4"))
